# Everything runs from here; `make` alone lists it. Nothing is installed outside
# this folder, except that `test` installs Debian packages its tests need.

FETCHED_ENVOY := $(CURDIR)/.tools/envoy/envoy
ENVOY         ?= $(FETCHED_ENVOY)
PROXY         ?= engine
ARGS          ?=

GO      ?= go
PLUGINS := plugins/dist/basic-auth.wasm plugins/dist/header-counter.wasm
# What a plugin is built from: the plugins' code without their tests.
PLUGIN_SOURCES := go.mod go.sum $(filter-out %_test.go,$(wildcard plugins/*/*.go plugins/internal/*/*.go))
# The packages that have end-to-end tests; those that want an API server alone are
# run together within one.
KUBE      := $(CURDIR)/.tools/kube/bin
tests      = $(shell git grep -l --untracked $(1) -- '*_test.go' | xargs -n1 dirname | sort -u | sed 's|^|./|')
E2E_API    = $(call tests,CHANDLER_KUBECONFIG)
E2E_KUBE  := ./test/kube ./test/kubernetes
E2E        = $(filter-out $(E2E_API) $(E2E_KUBE),$(call tests,'^//go:build e2e$$'))

# The end-to-end tests that are not about an Envoy process; they are run on the engine too.
ON_ENGINE := TestAgentStopped|TestAgentSignals|TestStatusOf|TestControl|TestImages|TestPull|TestHTTP|TestFailing|TestPlugins|TestModule|TestDeleted|TestMany|TestFiles|TestGateway|TestSidecar|TestNetwork|TestOrder

# One compilation, with these, serves the binary, the linters and the end-to-end
# tests; only the race detector needs another.
# grpcnotrace leaves out gRPC's debug pages, and with them a fifth of the binary: the
# linker keeps every method of every type where one is looked up by name.
export CGO_ENABLED := 0
export GOFLAGS     := $(GOFLAGS) -trimpath -tags=grpcnotrace
E2E_TAGS           := e2e,grpcnotrace

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help build plugins run test test-short race e2e bench lint generate clean deps envoy kube images e2e-machine e2e-cluster

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: plugins ## build the example plugins, then bin/chandler with them inside
	$(GO) build -ldflags "-s -w" -o bin/chandler ./cmd/chandler

plugins: $(PLUGINS) ## build the example plugins into plugins/dist

plugins/dist/basic-auth.wasm: $(PLUGIN_SOURCES)
	GOOS=wasip1 GOARCH=wasm $(GO) build -buildmode=c-shared -buildvcs=false -ldflags "-s -w" -o $@ ./plugins/basicauth

plugins/dist/header-counter.wasm: $(PLUGIN_SOURCES)
	GOOS=wasip1 GOARCH=wasm $(GO) build -buildmode=c-shared -buildvcs=false -ldflags "-s -w" -o $@ ./plugins/headercounter

run: build $(if $(filter envoy,$(PROXY)),envoy) ## run it all on this machine (PROXY=envoy, ARGS="-f examples/httpbin")
	bin/chandler run --proxy $(PROXY) $(if $(filter envoy,$(PROXY)),--envoy $(ENVOY)) $(ARGS)

envoy: ## fetch Envoy into .tools, unless ENVOY names another or it is there
	@test "$(ENVOY)" != "$(FETCHED_ENVOY)" || scripts/envoy.sh >/dev/null

test: deps lint race e2e ## everything; installs what it needs

test-short: ## unit tests, vet and staticcheck, in under two minutes
	$(GO) test -short ./...
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# What runs compiled modules or decodes manifests by the megabyte, in one goroutine:
# the race detector would find nothing there, and takes minutes to.
SERIAL := ./cmd/chandler ./deploy/... ./internal/spec/... ./plugins/...

race: ## unit tests, under the race detector where there is more than one goroutine
	CGO_ENABLED=1 $(GO) test -race $(filter-out $(shell $(GO) list $(SERIAL)),$(shell $(GO) list ./...))
	$(GO) test $(SERIAL)

e2e: build envoy kube ## end-to-end tests: real Envoy, real registries, a real Kubernetes, the READMEs' commands
	$(MAKE) -j 2 e2e-machine e2e-cluster

# Those that use this machine's ports, one package at a time.
e2e-machine:
	CHANDLER_BIN=$(CURDIR)/bin/chandler CHANDLER_ENVOY=$(ENVOY) \
		$(GO) test -tags $(E2E_TAGS) -count 1 -p 1 -timeout 20m $(E2E)
	CHANDLER_BIN=$(CURDIR)/bin/chandler CHANDLER_ENVOY=$(ENVOY) CHANDLER_E2E_PROXY=engine \
		$(GO) test -tags $(E2E_TAGS) -count 1 -timeout 10m -run '$(ON_ENGINE)' ./test/e2e

# Those in networks of their own.
e2e-cluster:
	CHANDLER_BIN=$(CURDIR)/bin/chandler CHANDLER_ENVOY=$(ENVOY) \
		$(GO) test -tags $(E2E_TAGS) -count 1 -p 1 -timeout 20m $(E2E_KUBE)
	$(GO) run ./test/kube/within $(GO) test -tags $(E2E_TAGS) -count 1 -p 1 -timeout 10m $(E2E_API)

kube: ## build the Kubernetes that tests use into .tools, unless it is there
	test/kube/build.sh $(KUBE)

images: build envoy ## build the images chandler and chandler-proxy with buildah
	cp /etc/ssl/certs/ca-certificates.crt $(ENVOY) bin/
	buildah --storage-driver vfs bud -f deploy/Dockerfile -t chandler .
	buildah --storage-driver vfs bud -f deploy/proxy.Dockerfile -t chandler-proxy .

bench: build envoy kube ## benchmarks
	CHANDLER_BIN=$(CURDIR)/bin/chandler CHANDLER_ENVOY=$(ENVOY) \
		$(GO) test -tags $(E2E_TAGS) -p 1 -run '^$$' -bench . -timeout 30m ./bench/... | awk -f bench/table.awk

lint: ## gofmt, go vet, staticcheck and the layers of the packages
	@out=$$(git ls-files -co --exclude-standard '*.go' | xargs gofmt -l); \
		test -z "$$out" || { echo "gofmt would change:"; echo "$$out"; exit 1; }
	$(GO) vet -tags $(E2E_TAGS) ./...
	$(GO) tool staticcheck -tags $(E2E_TAGS) ./...
	$(GO) test ./internal

generate: ## write generated files again
	$(GO) generate ./...

deps: ## install the Debian packages that tests need, if they are missing
	scripts/deps.sh

clean: ## remove what was built and fetched
	rm -rf bin .tools
	rm -f $(PLUGINS)
