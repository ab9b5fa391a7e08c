/** Carries a sentence into the messages of the compiler. No value has this type. */
export interface Hint<out Sentence extends string> {
  readonly "~hint": Sentence
}

/**
 * Stands beside `Duration.Input` in the type of an option, so that the compiler says how a duration is written.
 *
 * @category models
 * @since 0.1.0
 */
export type DurationHint<
  S extends string = "write a duration as '5 seconds', '100 millis' or a number of milliseconds"
> = Hint<S>

/**
 * Stands beside `Redacted` in the type of an option, so that the compiler says how a secret is given.
 *
 * @category models
 * @since 0.1.0
 */
export type SecretHint<
  S extends string = "a secret is wrapped, so that no log shows it: Redacted.make(text) of effect"
> = Hint<S>
