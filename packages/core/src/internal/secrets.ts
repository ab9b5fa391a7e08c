/**
 * Secrets in names and texts. A text of an error may hold an address, a header, an option, a whole configuration: what
 * looks like a secret is left out, rather too much than too little.
 */

const parts = [
  "pass(?:word|phrase|wd|code)?",
  "pwd",
  "secret",
  "token",
  "authori[sz]ation",
  "(?:api|access|account|private|shared|signing|encryption)[-_ ]?key",
  "credential",
  "cookie",
  "signature",
  "jwt",
  "nkey",
  "session[-_]?id"
]

const names = parts.join("|")

const named = new RegExp(names, "i")

/** Too short to be looked for inside of other names. */
const exactly = /^_?(?:auth|dsn|otp|pin|seed|sid|sig)$/i

/** Whether a field of this name holds a secret. */
export const isSecretName = (name: string): boolean => named.test(name) || exactly.test(name)

const hidden = "<redacted>"

/** Those that a sentence seldom has before its colon; a parser has "unexpected token: …". */
const alone = parts.filter((part) => !/^(?:authori|credential|cookie|signature)/.test(part)).join("|")
  .replace("|token|", "|(?<=[-\\w])token|")

const behindName = `(?:${names})[\\w-]{0,40}`

const rules: ReadonlyArray<readonly [pattern: RegExp, replacement: string | ((found: string) => string)]> = [
  // Keys and credentials in blocks.
  [/-----BEGIN (?!CERTIFICATE|PUBLIC)[\s\S]*?(?:-----END[^\r\n]*|$)/g, hidden],
  // The user of an address, with signs in it that should be encoded.
  [/(?!file:)(\b[a-z][a-z0-9+.-]{0,30}:\/\/)[^\s<>]*@/gi, `$1${hidden}@`],
  [/\b[\w.%+-]{1,100}:[^\s@/:"']{1,200}@(?=[\w.-]+:\d)/g, `${hidden}@`],
  // Headers, up to the end of their line.
  [/\b((?:authori[sz]ation|cookie)\s*[:=]\s*)(?!["'`<])[^\r\n]+/gi, `$1${hidden}`],
  // JSON in a text of JSON.
  [new RegExp(`(${behindName}\\\\+["']\\s*:\\s*)\\\\+".*?(?:\\\\+"|$)`, "gi"), `$1${hidden}`],
  // `"token": "…"`, `password: '…'`, `['secret', '…']`.
  [
    new RegExp(
      `(${behindName}(?:["'\`]?\\s*(?:=>|[:=])\\s*|["'\`]\\s*,\\s*))(["'\`])(?:\\\\[\\s\\S]|(?!\\2)[^\\\\])*(?:\\2|$)`,
      "gi"
    ),
    `$1$2${hidden}$2`
  ],
  // `password=…`, `password => …`, `"pin": …`.
  [
    new RegExp(`(${behindName}(?:["'\`]?\\s*=>?\\s*|["'\`]\\s*:\\s*))(?!["'\`<])[^\\s"'\`&;<>{}]+`, "gi"),
    `$1${hidden}`
  ],
  // `password: …`
  [
    new RegExp(`((?:${alone})[\\w-]{0,40}:\\s*)(?!["'\`<])[^\\s"'\`;<>{}]+`, "gi"),
    `$1${hidden}`
  ],
  [/(\btoken:\s*)(?=[\w.+/=-]*\d)[\w.+/=-]{6,}/gi, `$1${hidden}`],
  // Options of a command.
  [new RegExp(`((?:^|\\s)--?[\\w-]{0,40}?${behindName}\\s+)(?![-<])\\S+`, "gi"), `$1${hidden}`],
  // Parameters of an address.
  [/([?&#](?:key|sig|sid|code|auth|otp|assertion|state)=)[^\s&"'<>#]+/gi, `$1${hidden}`],
  [/\b(bearer\s+)[\w.~+/=-]{6,}/gi, `$1${hidden}`],
  [/\bbasic\s+[\w+/-]{6,}={0,2}/gi, (found) => isUserAndPassword(found) ? `Basic ${hidden}` : found],
  // Addresses whose path is the secret.
  [
    /(\b(?:hooks\.slack\.com\/services\/|discord(?:app)?\.com\/api\/webhooks\/|api\.telegram\.org\/bot))[^\s"'`<>]+/gi,
    `$1${hidden}`
  ],
  // Tokens that are known by their shape.
  [/\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*/g, hidden],
  [/\bS[ACNOUX][A-Z2-7]{56}\b/g, hidden],
  [/\b(?:gh[opsu]_|github_pat_|glpat-|npm_|sk-|[rs]k_live_|xox[abeprs]-|AIza)[\w-]{16,}/g, hidden]
]

const isUserAndPassword = (header: string): boolean => {
  try {
    return atob(header.replace(/^basic\s+/i, "")).includes(":")
  } catch {
    return false
  }
}

/** A text without secrets, at most `length` long. */
export const withoutSecrets = (given: string, length: number): string => {
  // Some rules read on: what they leave out makes room. A word that is cut may be half an address.
  const whole = given.length > length * 2
    ? `${given.slice(0, length * 2).replace(new RegExp(`\\S{1,${length}}$`), "")}…`
    : given
  let text = whole
  for (const [pattern, replacement] of rules) text = text.replace(pattern, replacement as string)
  return text.slice(0, length)
}
