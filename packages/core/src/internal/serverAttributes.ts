/** `server.address` and `server.port` of `host:port`; of several servers the first. */
export const serverAttributes = (address: string | undefined): { readonly [name: string]: string | number } => {
  const first = (address ?? "").split(",")[0]!.trim().replace(/^[a-z+.-]+:\/\//i, "")
  if (first === "") return {}
  const match = /^(\[[^\]]+\]|[^:]*):(\d+)$/.exec(first)
  if (match === null) return { "server.address": first }
  return { "server.address": match[1]!.replace(/^\[|\]$/g, ""), "server.port": Number(match[2]) }
}

/** As metrics take them: Effect's have texts for attributes. */
export const texts = (attributes: { readonly [name: string]: string | number }): Readonly<Record<string, string>> =>
  Object.fromEntries(Object.entries(attributes).map(([name, value]) => [name, String(value)]))
