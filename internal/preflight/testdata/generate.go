// Package testdata holds modules for the tests of preflight.
package testdata

//go:generate wat2wasm allocate.wat -o allocate.wasm
//go:generate wat2wasm busy.wat -o busy.wasm
//go:generate wat2wasm expression.wat -o expression.wasm
//go:generate wat2wasm imports-memory.wat -o imports-memory.wasm
//go:generate wat2wasm loop-at-start.wat -o loop-at-start.wasm
//go:generate wat2wasm loop.wat -o loop.wasm
//go:generate wat2wasm no-abi.wat -o no-abi.wasm
//go:generate wat2wasm refuse-vm.wat -o refuse-vm.wasm
//go:generate wat2wasm trap-at-start.wat -o trap-at-start.wasm
//go:generate wat2wasm wants-property.wat -o wants-property.wasm
//go:generate wat2wasm wrong-shape.wat -o wrong-shape.wasm
