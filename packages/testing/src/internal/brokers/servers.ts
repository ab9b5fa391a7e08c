import type { Kind } from "./versions.ts"

/** What is asked of a server, whatever provides it. */
export interface Wish {
  readonly kind: Kind
  readonly version: string
  readonly persistence: "none" | "always"
  readonly password?: string | undefined
  readonly args: ReadonlyArray<string>
  readonly config: string
}

/** Where a server listens and keeps its data. */
export interface Place {
  readonly host: string
  readonly port: number
  readonly folder: string
  /** The name a NATS server goes by. */
  readonly name: string
}

/** The program's name on PATH. */
export const program = (kind: Kind): string => `${kind}-server`

/** The image that holds a release line. */
export const image = (kind: Kind, line: string): string => `${kind === "valkey" ? "valkey/valkey" : kind}:${line}`

/** The port that is the server's own in an image. */
export const usualPort = (kind: Kind): number => kind === "nats" ? 4222 : 6379

/** The configuration file, for servers that are configured by one. */
export const configFile = (wish: Wish, place: Place): string =>
  [
    `listen: ${JSON.stringify(`${place.host}:${place.port}`)}`,
    `server_name: ${JSON.stringify(place.name)}`,
    "jetstream {",
    `  store_dir: ${JSON.stringify(place.folder)}`,
    ...(wish.persistence === "always" ? ["  sync_interval: always"] : []),
    "}",
    wish.config,
    ""
  ].join("\n")

/** The arguments of a server process. `configAt` is where {@link configFile} was put. */
export const serverArgs = (wish: Wish, place: Place, configAt: string): ReadonlyArray<string> =>
  wish.kind === "nats"
    ? ["-c", configAt, ...wish.args]
    : [
      "--bind",
      place.host,
      "--port",
      String(place.port),
      "--dir",
      place.folder,
      "--save",
      "",
      ...(wish.persistence === "always" ? ["--appendonly", "yes", "--appendfsync", "always"] : ["--appendonly", "no"]),
      ...(wish.password === undefined ? [] : ["--requirepass", wish.password]),
      ...wish.args
    ]

/** The address for clients. */
export const url = (wish: Wish, host: string, port: number): string =>
  wish.kind === "nats"
    ? `nats://${host}:${port}`
    : `redis://${wish.password === undefined ? "" : `:${encodeURIComponent(wish.password)}@`}${host}:${port}`
