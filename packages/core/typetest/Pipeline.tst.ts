import {
  type Message,
  Pipeline,
  type Publisher,
  Settlement,
  Topic,
  type Transport,
  type TransportError
} from "@millrace/core"
import type { Cause, Scope } from "effect"
import { Context, Data, Effect, Layer, Option, Result, Schedule, Schema } from "effect"
import { describe, expect, test } from "tstyche"

class Order extends Schema.Opaque<Order>()(Schema.Struct({
  id: Schema.String,
  customer: Schema.String,
  total: Schema.Number
})) {}
class Receipt extends Schema.Opaque<Receipt>()(Schema.Struct({ order: Schema.String, paid: Schema.Number })) {}

class Declined extends Data.TaggedError("Declined")<{ readonly reason: string }> {}
class Offline extends Data.TaggedError("Offline")<{}> {}
class Bank extends Context.Service<Bank, {
  readonly charge: (order: Order) => Effect.Effect<Receipt, Declined | Offline>
}>()("test/Bank") {}
class Clerk extends Context.Service<Clerk, { readonly note: Effect.Effect<void> }>()("test/Clerk") {}

const Orders = Topic.make("orders", { schema: Order, key: (order) => order.customer })
const Receipts = Topic.make("receipts", { schema: Receipt })
const source = Pipeline.from(Orders, { group: "payments" })

declare const toReceipt: (order: Order) => Receipt
declare const charge: (
  order: Order,
  message: Message.Message<Order>
) => Effect.Effect<Receipt, Declined | Offline, Bank>

type Source<A, E = never, R = never> = Pipeline.Open<Message.Message<Order>, A, E, R | Transport.Transport>

describe("the program on the front page", () => {
  const isPayable = (order: Order) => order.total > 0
  const charge = async (order: Order, { signal }: { signal: AbortSignal }) => {
    signal.throwIfAborted()
    return toReceipt(order)
  }
  const payments = source.pipe(
    Pipeline.filter(isPayable),
    Pipeline.mapPromise(charge),
    Pipeline.to(Receipts),
    Pipeline.retry({ times: 4, schedule: Schedule.exponential("1 second", 3).pipe(Schedule.jittered) }),
    Pipeline.deadLetter("orders.dead"),
    Pipeline.concurrency(64)
  )

  test("needs no annotation, and its hover is short", () => {
    expect(payments).type.toBe<
      Pipeline.Pipeline<
        Message.Message<Order>,
        Receipt,
        Cause.UnknownError | Publisher.PublishError,
        Transport.Transport
      >
    >()
    expect(Pipeline.run(payments)).type.toBeAssignableTo<
      Effect.Effect<never, TransportError.TransportError, Transport.Transport>
    >()
  })

  test("runs in every way", () => {
    expect(Pipeline.start(payments)).type.toBeAssignableTo<
      Effect.Effect<
        Pipeline.Running,
        TransportError.TransportError,
        Transport.Transport | Scope.Scope
      >
    >()
    expect(Pipeline.toLayer(payments)).type.toBeAssignableTo<
      Layer.Layer<never, TransportError.TransportError, Transport.Transport>
    >()
    expect(Pipeline.runAll([payments, source.pipe(Pipeline.mapEffect(charge_))])).type.toBeAssignableTo<
      Effect.Effect<never, TransportError.TransportError, Transport.Transport | Bank>
    >()
    expect(Layer.launch(Pipeline.toLayer(payments))).type.toBeAssignableTo<
      Effect.Effect<never, TransportError.TransportError, Transport.Transport>
    >()
  })

  test("the scope of an attempt is not asked of the caller", () => {
    const scoped = source.pipe(Pipeline.mapEffect(() => Effect.acquireRelease(Effect.succeed(1), () => Effect.void)))
    expect<Pipeline.Services<typeof scoped>>().type.toBe<Transport.Transport | Scope.Scope>()
    expect(Pipeline.run(scoped)).type.toBeAssignableTo<
      Effect.Effect<never, TransportError.TransportError, Transport.Transport>
    >()
  })
})

const charge_ = charge

describe("Topic.make", () => {
  test("infers the key's argument, whether it stands before or after the schema", () => {
    expect(Topic.make("orders", { key: (order) => order.customer, schema: Order })).type.toBe<Topic.Topic<Order>>()
    expect(Orders).type.toBe<Topic.Topic<Order>>()
    // @ts-expect-error Property 'custmer' does not exist on type 'Order'
    Topic.make("orders", { schema: Order, key: (order) => order.custmer })
  })

  test("typed headers reach the handler", () => {
    const Traced = Topic.make("traced", { schema: Order, headers: Schema.Struct({ tenant: Schema.String }) })
    Pipeline.from(Traced, { group: "g" }).pipe(
      Pipeline.map((order, message) => {
        expect(order).type.toBe<Order>()
        expect(message.typedHeaders).type.toBe<{ readonly tenant: string }>()
        return order
      })
    )
  })

  test("services of decoding are asked by `from`, those of encoding by `to`", () => {
    class Rates extends Context.Service<Rates, { readonly rate: number }>()("test/Rates") {}
    class Vault extends Context.Service<Vault, { readonly key: string }>()("test/Vault") {}
    const Priced = Schema.declare((u): u is { readonly price: number } => typeof u === "object")
    const schema = Priced as unknown as Schema.Codec<{ readonly price: number }, string, Rates, Vault>
    const Prices = Topic.make("prices", { schema })
    const pipeline = Pipeline.from(Prices, { group: "g" })
    expect<Pipeline.Services<typeof pipeline>>().type.toBe<Transport.Transport | Rates>()
    const writing = source.pipe(Pipeline.to(Prices, (order) => ({ price: order.total })))
    expect<Pipeline.Services<typeof writing>>().type.toBe<Transport.Transport | Vault>()
  })
})

describe("steps", () => {
  test("map", () => {
    expect(source.pipe(Pipeline.map((order) => order.total))).type.toBe<Source<number>>()
    expect(Pipeline.map(source, (order) => order.total)).type.toBe<Source<number>>()
    expect(source.pipe(Pipeline.map((_, message) => message.value.customer))).type.toBe<Source<string>>()
  })

  test("map refuses a Promise and an Effect, and says what to use", () => {
    // @ts-expect-error "this returns a Promise: use Pipeline.mapPromise"
    source.pipe(Pipeline.map(async (order) => order.total))
    // @ts-expect-error "this returns an Effect: use Pipeline.mapEffect"
    source.pipe(Pipeline.map((order) => Effect.succeed(order.total)))
    // @ts-expect-error "this returns a Promise: use Pipeline.mapPromise"
    Pipeline.map(source, async (order) => order.total)
  })

  test("mapEffect adds failures and services", () => {
    expect(source.pipe(Pipeline.mapEffect(charge))).type.toBe<Source<Receipt, Declined | Offline, Bank>>()
    expect(Pipeline.mapEffect(source, charge)).type.toBe<Source<Receipt, Declined | Offline, Bank>>()
    const generator = source.pipe(Pipeline.mapEffect(Effect.fnUntraced(function*(order, message) {
      const bank = yield* Bank
      expect(message).type.toBe<Message.Message<Order>>()
      return yield* bank.charge(order)
    })))
    expect(generator).type.toBe<Source<Receipt, Declined | Offline, Bank>>()
  })

  test("a settlement is a failure like any other", () => {
    const late = source.pipe(
      Pipeline.mapEffect((order) => order.total < 0 ? Settlement.retry("5 seconds") : Effect.succeed(order))
    )
    expect(late).type.toBe<Source<Order, Settlement.SettlementRequested>>()
  })

  test("mapPromise", () => {
    const plain = async (order: Order) => order.total
    expect(source.pipe(Pipeline.mapPromise(plain))).type.toBe<Source<number, Cause.UnknownError>>()
    expect(Pipeline.mapPromise(source, plain)).type.toBe<Source<number, Cause.UnknownError>>()
    const options = { try: plain, catch: () => new Offline() }
    expect(source.pipe(Pipeline.mapPromise(options))).type.toBe<Source<number, Offline>>()
    expect(Pipeline.mapPromise(source, options)).type.toBe<Source<number, Offline>>()
    expect(source.pipe(Pipeline.mapPromise(async (order, { signal }) => [order.total, signal.aborted] as const))).type
      .toBe<Source<readonly [number, boolean], Cause.UnknownError>>()
  })

  test("mapPromise refuses a Promise of an Effect, which nobody would run", () => {
    // @ts-expect-error "this resolves to an Effect that is never run: use Pipeline.mapEffect"
    source.pipe(Pipeline.mapPromise(async (order: Order) => Effect.succeed(order.total)))
  })

  test("tap passes the value on and takes Effects only", () => {
    const note = () => Effect.flatMap(Clerk, ({ note }) => note)
    expect(source.pipe(Pipeline.tap(note))).type.toBe<Source<Order, never, Clerk>>()
    expect(Pipeline.tap(source, note)).type.toBe<Source<Order, never, Clerk>>()
    // @ts-expect-error "this returns no Effect: return one, such as Effect.sync(() => …)"
    source.pipe(Pipeline.tap(console.log))
  })

  test("filter, and filter that narrows", () => {
    const isReceipt = (value: Order | Receipt): value is Receipt => "paid" in value
    const either = source.pipe(Pipeline.map((order): Order | Receipt => order.total > 0 ? order : toReceipt(order)))
    expect(either.pipe(Pipeline.filter(isReceipt))).type.toBe<Source<Receipt>>()
    expect(Pipeline.filter(either, isReceipt)).type.toBe<Source<Receipt>>()
    expect(either.pipe(Pipeline.filter((value, message) => value === message.value))).type.toBe<
      Source<Order | Receipt>
    >()
    expect(Pipeline.filter(either, (value, message) => value === message.value)).type.toBe<Source<Order | Receipt>>()
  })

  test("filterMap takes a Result, not an Option", () => {
    const positive = (order: Order) => order.total > 0 ? Result.succeed(order.total) : Result.fail("nothing to pay")
    expect(source.pipe(Pipeline.filterMap(positive))).type.toBe<Source<number>>()
    expect(Pipeline.filterMap(source, positive)).type.toBe<Source<number>>()
    expect(Pipeline.filterMap<Message.Message<Order>, Order, number, string>).type.not.toBeCallableWith(() =>
      Option.some(1)
    )
  })

  test("to passes the value on, and refuses one of another type", () => {
    const receipts = source.pipe(Pipeline.map(toReceipt))
    expect(receipts.pipe(Pipeline.to(Receipts))).type.toBe<Source<Receipt, Publisher.PublishError>>()
    expect(Pipeline.to(receipts, Receipts)).type.toBe<Source<Receipt, Publisher.PublishError>>()
    expect(source.pipe(Pipeline.to(Receipts, toReceipt), Pipeline.to(Orders, (order) => [order, order]))).type.toBe<
      Source<Order, Publisher.PublishError>
    >()
    expect(Pipeline.to(source, Receipts, toReceipt)).type.toBe<Source<Order, Publisher.PublishError>>()
    // @ts-expect-error missing the following properties from type 'Receipt': order, paid
    source.pipe(Pipeline.to(Receipts))
    // @ts-expect-error Type 'Order' is not assignable to type 'NoInfer<Receipt> | readonly NoInfer<Receipt>[]'
    Pipeline.to(source, Receipts, (order) => order)
  })

  test("timeout adds a failure that catchTag and while see", () => {
    expect(source.pipe(Pipeline.timeout("1 second"))).type.toBe<Source<Order, Cause.TimeoutError>>()
    expect(Pipeline.timeout(source, "1 second")).type.toBe<Source<Order, Cause.TimeoutError>>()
  })

  test("catchTag takes its tag out of the failures, one or several", () => {
    const charged = source.pipe(Pipeline.mapEffect(charge))
    const none = () => Effect.succeed(0)
    expect(charged.pipe(Pipeline.catchTag("Declined", (error, message) => {
      expect(error).type.toBe<Declined>()
      expect(message).type.toBe<Message.Message<Order>>()
      return none()
    }))).type.toBe<Source<Receipt | number, Offline, Bank>>()
    expect(charged.pipe(Pipeline.catchTag(["Declined", "Offline"], none))).type.toBe<
      Source<Receipt | number, never, Bank>
    >()
    expect(Pipeline.catchTag(charged, "Offline", none)).type.toBe<Source<Receipt | number, Declined, Bank>>()
    // @ts-expect-error is not assignable
    Pipeline.catchTag(charged, "Declned", none)
  })

  test("batch and batchEach hand over many, and answer for all or for each", () => {
    const options = { size: 100, within: "1 second" } as const
    expect(source.pipe(Pipeline.batch(options, (orders, messages) => {
      expect(orders).type.toBe<readonly [Order, ...Array<Order>]>()
      expect(messages).type.toBeAssignableTo<readonly [Message.Message<Order>, ...Array<Message.Message<Order>>]>()
      return Effect.fail(new Offline())
    }))).type.toBe<Source<Order, Offline>>()
    expect(Pipeline.batch(source, options, () => Effect.void)).type.toBe<Source<Order>>()

    const each = (orders: ReadonlyArray<Order>) =>
      Effect.succeed(orders.map((order): Result.Result<number, Declined> => Result.succeed(order.total)))
    expect(source.pipe(Pipeline.batchEach(options, each))).type.toBe<Source<number, Declined>>()
    expect(Pipeline.batchEach(source, options, each)).type.toBe<Source<number, Declined>>()
  })

  test("branchTag is exhaustive: neither a missing tag nor an unknown one compiles", () => {
    type Paid = { readonly _tag: "Paid"; readonly sum: number }
    type Free = { readonly _tag: "Free" }
    const tagged = source.pipe(
      Pipeline.map((order): Paid | Free => order.total > 0 ? { _tag: "Paid", sum: order.total } : { _tag: "Free" })
    )
    const branches = tagged.pipe(Pipeline.branchTag({
      Paid: (paid) => paid.pipe(Pipeline.map(({ sum }) => sum), Pipeline.tap(() => Effect.fail(new Offline()))),
      Free: (free) => free.pipe(Pipeline.map(({ _tag }) => _tag))
    }))
    expect(branches).type.toBe<Source<number | "Free", Offline>>()
    // @ts-expect-error Property 'Free' is missing
    tagged.pipe(Pipeline.branchTag({ Paid: (paid) => paid }))
    // @ts-expect-error is not assignable to type 'never'
    tagged.pipe(Pipeline.branchTag({ Paid: (paid) => paid, Free: (free) => free, Owed: () => source }))
  })

  test("branch is exhaustive over the names its function gives", () => {
    const by = (order: Order) => order.total > 100 ? "large" : "small"
    const branches = source.pipe(Pipeline.branch(by, {
      large: (orders) => orders.pipe(Pipeline.mapEffect(charge)),
      small: (orders) => orders.pipe(Pipeline.map((order) => order.id))
    }))
    expect(branches).type.toBe<Source<Receipt | string, Declined | Offline, Bank>>()
    // @ts-expect-error Property 'small' is missing
    source.pipe(Pipeline.branch(by, { large: (orders) => orders }))
  })

  test("middleware sees all that stands above it as one Effect", () => {
    const wrapped = source.pipe(
      Pipeline.mapEffect(charge),
      Pipeline.middleware((handler, message) => {
        expect(handler).type.toBe<Effect.Effect<Receipt, Declined | Offline, Transport.Transport | Bank>>()
        expect(message).type.toBe<Message.Message<Order>>()
        return Effect.catchTag(handler, "Offline", () => Effect.succeed(message.id))
      })
    )
    expect(wrapped).type.toBe<Source<Receipt | string, Declined, Bank>>()
  })
})

describe("policies", () => {
  const charged = source.pipe(Pipeline.mapEffect(charge))
  type Settled<R = Bank> = Pipeline.Pipeline<
    Message.Message<Order>,
    Receipt,
    Declined | Offline,
    R | Transport.Transport
  >

  test("a step after a policy does not compile, and its text says why", () => {
    const settled = charged.pipe(Pipeline.retry({ times: 1 }))
    // @ts-expect-error "~steps come before policies"
    settled.pipe(Pipeline.map(toTotal))
    // @ts-expect-error "~steps come before policies"
    Pipeline.map(settled, toTotal)
  })

  test("they change neither value nor failures, in any order", () => {
    expect(charged.pipe(Pipeline.retry({ times: 1 }), Pipeline.deadLetter("dead"), Pipeline.concurrency(2))).type.toBe<
      Settled
    >()
    expect(charged.pipe(Pipeline.concurrency(2), Pipeline.discard, Pipeline.retry({ times: 1 }))).type.toBe<Settled>()
    expect(charged.pipe(Pipeline.ackPolicy("manual", { settleWithin: "5 seconds" }))).type.toBe<Settled>()
    expect(Pipeline.retry(charged, { times: 1 })).type.toBe<Settled>()
    expect(Pipeline.deadLetter(charged, "dead")).type.toBe<Settled>()
    expect(Pipeline.concurrency(charged, 2)).type.toBe<Settled>()
    expect(Pipeline.discard(charged)).type.toBe<Settled>()
    expect(Pipeline.ackPolicy(charged, "on-receive")).type.toBe<Settled>()
  })

  test("retry's while is typed by the failures above, without the settlements a handler asked for", () => {
    const withSignals = charged.pipe(Pipeline.tap(() => Settlement.terminate("enough")))
    withSignals.pipe(Pipeline.retry({
      while: (error, message) => {
        expect(error).type.toBe<Declined | Offline>()
        expect(message).type.toBe<Message.Message<Order>>()
        return error._tag === "Offline"
      }
    }))
    Pipeline.retry(charged, {
      while: (error) => {
        expect(error).type.toBe<Declined | Offline>()
        return true
      }
    })
  })

  test("a schedule's services are asked for", () => {
    const schedule = Schedule.recurs(3).pipe(Schedule.tap(() => Effect.flatMap(Clerk, ({ note }) => note)))
    expect(charged.pipe(Pipeline.retry({ schedule }))).type.toBe<Settled<Bank | Clerk>>()
  })

  test("a key is chosen from the source message, whatever the value is by then", () => {
    expect(charged.pipe(Pipeline.concurrency({
      max: 8,
      key: (message) => {
        expect(message).type.toBe<Message.Message<Order>>()
        return message.value.customer
      }
    }))).type.toBe<Settled>()
  })

  test("several can be bundled in one function", () => {
    const standard = <M extends Message.Any, A, E, R>(self: Pipeline.Pipeline<M, A, E, R>) =>
      self.pipe(Pipeline.retry({ times: 2 }), Pipeline.deadLetter("dead"), Pipeline.concurrency(8))
    expect(charged.pipe(standard)).type.toBe<Settled>()
  })
})

declare const toTotal: (receipt: Receipt) => number

test("the failures and services of a pipeline can be named", () => {
  const charged = source.pipe(Pipeline.mapEffect(charge))
  expect<Pipeline.Error<typeof charged>>().type.toBe<Declined | Offline>()
  expect<Pipeline.Services<typeof charged>>().type.toBe<Bank | Transport.Transport>()
})
