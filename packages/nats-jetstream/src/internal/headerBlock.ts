/** The headers of one message, as they are written to the server. */
export class HeaderBlock {
  private text = "NATS/1.0\r\n"

  /** Neither may hold a line break. */
  add(name: string, value: string): void {
    this.text += `${name}: ${value.trim()}\r\n`
  }

  encode(): Uint8Array {
    return Buffer.from(`${this.text}\r\n`)
  }
}
