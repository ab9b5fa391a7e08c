import { Socket } from "node:net"

let writes = 0

/** How often this process has written to a socket: what a message costs that no client may hide. */
export const socketWrites = (): number => writes

/** Counts from now on. */
export const countSocketWrites = (): void => {
  const prototype = Socket.prototype as unknown as Record<"_writeGeneric", (...args: Array<unknown>) => unknown>
  const write = prototype._writeGeneric
  prototype._writeGeneric = function(...args) {
    writes++
    return write.apply(this, args)
  }
}
