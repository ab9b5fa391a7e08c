/** Goes into dead letters; a test holds it against package.json. */
export const sdk = "millrace/0.1.0"
