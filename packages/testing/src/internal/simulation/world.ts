import type * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scheduler from "effect/Scheduler"
import * as v8 from "node:v8"

interface Alarm {
  readonly due: number
  readonly process: Process | undefined
  readonly ring: () => void
}

/** Calls `f` when a promise is made or settled, until its result is called; `undefined` where the runtime cannot tell. */
const onPromise = (f: () => void): (() => void) | undefined => {
  // Deno has no hooks, and Bun throws.
  const hooks: typeof v8.promiseHooks | undefined = v8.promiseHooks
  try {
    const unhook = hooks?.createHook({ init: f, settled: f })
    return unhook === undefined ? undefined : () => unhook()
  } catch {
    return undefined
  }
}

/**
 * One thread and one time for all processes of a simulation. What is ready runs in an order that the seed chooses, and
 * time moves only when nothing is ready.
 */
export class World {
  /** Milliseconds. */
  now = 0
  steps = 0
  readonly random: () => number
  /** Steps of fibers until one gives way. */
  private untilYield: number
  readonly ready: Array<Dispatcher> = []
  private readonly alarms: Array<Alarm> = []

  constructor(random: () => number) {
    this.random = random
    this.untilYield = this.stepsToYield()
  }

  /** Whether a fiber gives way at this step: at one of a hundred, with one draw for all steps in between. */
  givesWay(): boolean {
    if (--this.untilYield > 0) return false
    this.untilYield = this.stepsToYield()
    return true
  }

  private stepsToYield(): number {
    return Math.log(1 - this.random()) / Math.log(1 - 0.01)
  }

  chance(probability: number): boolean {
    return this.random() < probability
  }

  between(least: number, most: number): number {
    return least + this.random() * (most - least)
  }

  oneOf<A>(items: ReadonlyArray<A>): A | undefined {
    return items[Math.floor(this.random() * items.length)]
  }

  /** Nothing rings at a process that is dead; one that is frozen hears it when it is thawed. */
  after(millis: number, process: Process | undefined, ring: () => void): () => void {
    const alarm = { due: this.now + millis, process, ring }
    this.set(alarm)
    return () => {
      const index = this.alarms.indexOf(alarm)
      if (index >= 0) this.alarms.splice(index, 1)
      else if (process !== undefined) process.late.delete(alarm)
    }
  }

  set(alarm: Alarm): void {
    if (alarm.due === Infinity) return
    this.alarms.splice(this.alarms.findLastIndex(({ due }) => due <= alarm.due) + 1, 0, alarm)
  }

  /**
   * Runs until `isDone`, which is asked whenever nothing is ready; `false` when that does not come. Time goes on when no
   * promise has anything to run either: promises run in a turn of the event loop, which is taken after any of them was
   * made or settled, or after each alarm where the runtime does not tell.
   */
  run(isDone: () => boolean, mostSteps: number): Effect.Effect<boolean> {
    return Effect.callback<boolean>((resume) => {
      let hasPromises = false
      const promised = () => {
        hasPromises = true
      }
      const unhook = onPromise(promised)
      const end = (isDone: boolean) => {
        unhook?.()
        resume(Effect.succeed(isDone))
      }
      const turn = () => {
        hasPromises = unhook === undefined
        for (let left = mostInTurn; left > 0; left--) {
          this.stepAll()
          if (hasPromises) break
          if (isDone()) return end(true)
          if (this.alarms.length === 0 || this.steps > mostSteps) return end(false)
          this.ring()
        }
        next = setImmediate(turn)
      }
      let next = setImmediate(turn)
      return Effect.sync(() => {
        clearImmediate(next)
        unhook?.()
      })
    })
  }

  /** Runs the tasks that are ready, and those that become ready meanwhile. */
  private stepAll(): void {
    while (this.step()) this.steps++
  }

  private step(): boolean {
    const isDue = this.alarms.length > 0 && this.alarms[0]!.due <= this.now
    if (isDue && (this.ready.length === 0 || this.chance(0.3))) {
      this.ring()
      return true
    }
    if (this.ready.length === 0) return false
    const index = Math.floor(this.random() * this.ready.length)
    const dispatcher = this.ready[index]!
    this.ready[index] = this.ready[this.ready.length - 1]!
    this.ready.pop()
    this.now += this.chance(0.01) ? this.between(0, 3) : 0.005
    dispatcher.run()
    return true
  }

  private ring(): void {
    const alarm = this.alarms.shift()!
    this.steps++
    this.now = Math.max(this.now, alarm.due)
    if (alarm.process === undefined || alarm.process.state === "running") alarm.ring()
    else if (alarm.process.state === "frozen") alarm.process.late.add(alarm)
  }
}

/** Code that lives and dies together, with a scheduler and a clock of its own. */
export class Process {
  state: "running" | "frozen" | "dead" = "running"
  /** How wrong its clock is, in milliseconds. */
  skew = 0
  readonly late = new Set<Alarm>()
  readonly held: Array<Dispatcher> = []
  readonly world: World
  readonly scheduler: Scheduler.Scheduler
  readonly clock: Clock.Clock

  constructor(world: World) {
    this.world = world
    this.scheduler = {
      executionMode: "async",
      shouldYield: (fiber) => fiber.currentOpCount >= 2048 || world.givesWay(),
      makeDispatcher: () => new Dispatcher(this)
    }
    const millis = () => Math.floor(epoch + world.now + this.skew)
    const wall = () => BigInt(millis()) * 1_000_000n
    const monotonic = () => BigInt(Math.floor(world.now * 1e6))
    this.clock = {
      currentTimeMillisUnsafe: millis,
      currentTimeMillis: Effect.sync(millis),
      currentTimeNanosUnsafe: wall,
      currentTimeNanos: Effect.sync(wall),
      monotonicTimeNanosUnsafe: monotonic,
      monotonicTimeNanos: Effect.sync(monotonic),
      sleep: (duration) =>
        Effect.callback<void>((resume) => {
          const cancel = world.after(Duration.toMillis(duration), this, () => resume(Effect.void))
          return Effect.sync(cancel)
        })
    }
  }

  thaw(): void {
    if (this.state !== "frozen") return
    this.state = "running"
    this.world.ready.push(...this.held.splice(0))
    for (const alarm of this.late) this.world.set(alarm)
    this.late.clear()
  }
}

/** The tasks of one fiber, in their order. */
class Dispatcher implements Scheduler.SchedulerDispatcher {
  private readonly process: Process
  private tasks: Array<{ readonly task: () => void; readonly priority: number }> = []
  constructor(process: Process) {
    this.process = process
  }
  scheduleTask(task: () => void, priority: number): void {
    this.tasks.push({ task, priority })
    if (this.tasks.length > 1) return
    if (this.process.state === "frozen") this.process.held.push(this)
    else this.process.world.ready.push(this)
  }
  run(): void {
    if (this.process.state === "frozen") return void this.process.held.push(this)
    const { tasks } = this
    this.tasks = []
    if (tasks.length > 1) tasks.sort((a, b) => a.priority - b.priority)
    for (const { task } of tasks) if (this.process.state !== "dead") task()
  }
  flush(): void {
    while (this.tasks.length > 0) this.run()
  }
}

/** The event loop gets a turn after this many alarms: timeouts of tests count on it. */
const mostInTurn = 1000

/** 1 January 2026: an epoch of 0 would hide what counts from there. */
const epoch = Date.UTC(2026, 0, 1)
