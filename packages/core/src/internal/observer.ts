/** The observer of a program that has none. */
export const noObserver = (): void => {}
