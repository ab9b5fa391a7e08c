/** Parts that several scripts begin with. */

/**
 * Fails before anything is written when this user may not run a command that comes later: a script that stops half-way is
 * worse than one that does nothing. Names the command too, which Redis 7.0 does not do inside a script.
 */
export const needs = (command: string, ...args: ReadonlyArray<string>): string =>
  `if redis.acl_check_cmd and not redis.acl_check_cmd(${[`'${command}'`, ...args].join(", ")}) then ` +
  `return redis.error_reply("NOPERM this user has no permissions to run the '${nameOf(command, args)}' command") end\n`

/** `xinfo|consumers` where the command has subcommands, as the rules of a user name them. */
const nameOf = (command: string, [first = ""]: ReadonlyArray<string>): string =>
  (/^X(INFO|GROUP)$/.test(command) ? `${command}|${first.replaceAll("'", "")}` : command).toLowerCase()

/** \`now\`: the server's clock in milliseconds. */
export const now = `
${needs("TIME")}
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
`

/**
 * \`leased(lease)\`: 'held', 'own', or '' where the lease ended, after \`now\`. A lease is how the entry was held, and until
 * when by the server's clock: the process may have stood still since it wrote the command.
 */
export const leased = `
local function leased(lease)
  local how, till = string.match(lease, '^(%a+) (%d+)$')
  return how and now < tonumber(till) and how or ''
end
`

/**
 * Releases belong to this consumer, so that a look for them costs nothing where there are none. Their delivery time lies
 * near the epoch; the second one marks an entry that is still a suspect.
 */
export const released = "millrace:released"

/** Consumers of this name belong to Millrace: they are neither pruned nor shown. */
export const isInternal = (consumer: string): boolean => consumer.startsWith("millrace:")

export const releasedAt = 1
export const releasedSuspectAt = 1_000_000

/** The delivery time of a release is at least this where the entry is a suspect. */
export const suspectFrom = 500_000

/** \`fieldsOf(reply)\`: a flat reply of names and values as a table. */
export const fieldsOf = `
local function fieldsOf(flat)
  local fields = {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end
`

/** \`before(a, b)\`: compares two entry ids. */
export const before = `
local function before(a, b)
  local a1, a2 = string.match(a, '(%d+)-(%d+)')
  local b1, b2 = string.match(b, '(%d+)-(%d+)')
  if #a1 ~= #b1 then return #a1 < #b1 end
  if a1 ~= b1 then return a1 < b1 end
  if #a2 ~= #b2 then return #a2 < #b2 end
  return a2 < b2
end
`
