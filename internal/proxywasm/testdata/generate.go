// Package testdata holds guests for the tests of proxywasm.
package testdata

//go:generate wat2wasm addheader.wat -o addheader.wasm
//go:generate wat2wasm scripted.wat -o scripted.wasm
//go:generate wat2wasm scripted010.wat -o scripted010.wasm
//go:generate wat2wasm hostile.wat -o hostile.wasm
//go:generate wat2wasm command.wat -o command.wasm
//go:generate wat2wasm reactor.wat -o reactor.wasm
//go:generate wat2wasm restricted.wat -o restricted.wasm
//go:generate wat2wasm exits.wat -o exits.wasm
