// Two copies of core in one program.
import { Pipeline, Topic } from "@millrace/core"
import { Schema } from "effect"
import * as other from "./copy/dist/index.js"

const theirs = other.Pipeline.from(other.Topic.make("orders", { schema: Schema.String }), { group: "g" })
try {
  theirs.pipe(Pipeline.map((text) => text))
} catch (error) {
  console.log(error.message)
}
void Topic
