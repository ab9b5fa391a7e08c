/** One argument of a command. */
export type Argument = string | Buffer

/** A command as it is sent: its name and its arguments. */
export type Command = ReadonlyArray<Argument>
