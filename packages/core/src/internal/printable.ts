/** Text for a terminal: nothing in it moves the cursor or colours what follows. */
export const printable = (text: string): string => text.replace(/[^\P{Cc}\n\t]/gu, "\ufffd")

/** Text for a line of a log. */
export const oneLine = (text: string): string => text.replace(/\s*[\r\n]+\s*/g, " ").replace(/\p{Cc}/gu, "\ufffd")
