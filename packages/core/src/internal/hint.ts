/** Carries a sentence into the messages of the compiler. No value has this type. */
export interface Hint<out Sentence extends string> {
  readonly "~hint": Sentence
}
