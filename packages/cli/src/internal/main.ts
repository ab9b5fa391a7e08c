#!/usr/bin/env node
import process from "node:process"

// The arguments may hold passwords, and every user of the machine may list them: hide them before anything is loaded.
const args = process.argv.slice(2)
process.title = "millrace"

const [major = 0, minor = 0] = process.versions.node.split(".").map(Number)
if (major < 22 || (major === 22 && minor < 19)) {
  process.stderr.write(`millrace: Node.js 22.19 or newer is needed, this is ${process.versions.node}\n`)
  process.exit(2)
}

const { start } = await import("./start.ts")
start(args)
