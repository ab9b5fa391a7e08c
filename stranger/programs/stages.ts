// Two stages in one process: an upload becomes a thumbnail, a thumbnail is announced. A broken picture is given up at once.
import { Millrace, Pipeline, Settlement, Topic } from "@millrace/core"
import { MemoryTransport } from "@millrace/testing"
import { z } from "zod"

const Uploads = Topic.make("uploads", { schema: z.object({ file: z.string() }) })
const Thumbnails = Topic.make("thumbnails", { schema: z.object({ file: z.string(), width: z.number() }) })

const shrink = async (file: string) => {
  if (!file.endsWith(".png")) throw Settlement.terminate(`${file} is no picture`)
  return { file: `small-${file}`, width: 64 }
}
const announced: Array<string> = []

const shrinking = Pipeline.from(Uploads, { group: "shrinking" }).pipe(
  Pipeline.filter((upload) => !upload.file.startsWith(".")),
  Pipeline.mapPromise((upload) => shrink(upload.file)),
  Pipeline.to(Thumbnails),
  Pipeline.concurrency(4)
)
const announcing = Pipeline.from(Thumbnails, { group: "announcing" }).pipe(
  Pipeline.tapPromise(async (thumbnail) => {
    announced.push(thumbnail.file)
  })
)

const millrace = await Millrace.run([shrinking, announcing], { broker: MemoryTransport.layer() })
await millrace.publishAll(Uploads, [{ file: "a.png" }, { file: ".hidden" }, { file: "b.txt" }, { file: "c.png" }])
while ((await millrace.counts(announcing)).handled < 2) await new Promise((resolve) => setTimeout(resolve, 5))
while ((await millrace.counts(shrinking)).deadLettered < 1) await new Promise((resolve) => setTimeout(resolve, 5))
const { deadLettered, filtered, handled } = await millrace.counts(shrinking)
const [letter] = await millrace.deadLetters("uploads.dead")
await millrace.stop()
console.log(announced.sort().join(), { handled, filtered, deadLettered }, letter?.record.error.message)
