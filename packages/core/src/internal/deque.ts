/**
 * A queue in an array that is cut now and then.
 *
 * Shifting an array, or a linked list with one object per message, costs more than the handler of a fast pipeline.
 */
export class Deque<A> {
  private items: Array<A | undefined> = []
  private head = 0

  get size(): number {
    return this.items.length - this.head
  }

  push(item: A): void {
    this.items.push(item)
  }

  peek(): A | undefined {
    return this.items[this.head]
  }

  shift(): A | undefined {
    if (this.head === this.items.length) return undefined
    const item = this.items[this.head]
    this.items[this.head++] = undefined
    if (this.head === this.items.length) {
      this.items.length = 0
      this.head = 0
    } else if (this.head >= 1024) {
      this.items = this.items.slice(this.head)
      this.head = 0
    }
    return item
  }

  delete(item: A): boolean {
    const index = this.items.indexOf(item, this.head)
    if (index < 0) return false
    this.items.splice(index, 1)
    return true
  }

  /** Empties the queue. */
  takeAll(): Array<A> {
    const items = this.toArray()
    this.items = []
    this.head = 0
    return items
  }

  toArray(): Array<A> {
    return this.items.slice(this.head) as Array<A>
  }
}
