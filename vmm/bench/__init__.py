"""`pageferry bench`: what a message costs here, and what it costs in the ways that there were.

samples, results    percentiles; the table of what was measured, and its JSON (pure)
plan                which rows there are, and the rounds that measure one
ours                the columns of our own: machines that move pages, that copy, and the C floor
ends, elsewhere     the columns of others: pipe, socket and shared memory between two processes
calls               calls of functions in a sandbox; rivals: by ctypes, in a process, as WebAssembly
library, callee     the functions, built for each of them; and as another process calls them
describe            the host that it was measured on
table, breakeven, chart, check    what is made of the results: text, a picture, a verdict

The command line is vmm.command.bench.
"""
