/** Carries a sentence into the messages of the compiler. No value has this type. */
export interface Hint<out Sentence extends string> {
  readonly "~hint": Sentence
}

/**
 * Sentences that stand beside the type of an option, as in `Duration.Input | Hints["duration"]`, so that the compiler prints
 * them when the option is given another value. No value has these types.
 *
 * @category models
 * @since 0.1.0
 */
export interface Hints {
  /** Beside `Duration.Input`. */
  readonly duration: Hint<"write a duration as '5 seconds', '100 millis' or a number of milliseconds">
  /** Beside `Redacted`. */
  readonly secret: Hint<"a secret is wrapped, so that no log shows it: Redacted.make(text) of effect">
}
