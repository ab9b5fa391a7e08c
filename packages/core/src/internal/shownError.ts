import { plainText } from "./errorDetail.ts"

/**
 * One of our errors as data, under `console.log`, `JSON.stringify` and loggers: its message and fields, of a cause of others
 * its text only. Any object may hang on an error of a client, its connection as well.
 */
export const shownError = (error: Error): object => {
  const { cause, message } = error
  const fields = Object.entries(error).filter(([name]) => name !== "cause" && name !== "message")
  const text = plainText(cause)
  return { ...Object.fromEntries(fields), message, ...(text === undefined ? {} : { cause: text }) }
}
