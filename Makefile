# Everything a contributor runs. Needs Go and make, nothing else; `make` alone lists the targets.

GO ?= go
# Nothing that ships needs a C compiler, and a build that finds one must not differ from one that does not.
export CGO_ENABLED = 0

# The demo's environment. Equal values give equal bytes, so the demo's numbers can be compared between machines.
ORDERS ?= 20000
SEED   ?= 1

# What bench and fuzz run, and for how long each.
PKG       ?= ./...
BENCH     ?= .
BENCHTIME ?= 0.5s
FUZZTIME  ?= 5s

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/weft
	$(GO) build -o bin/weft ./cmd/weft

.PHONY: stack
stack: ## build bin/weft-dev, the embedded servers (the first time 6 minutes)
	cd devstack && $(GO) build -o ../bin/weft-dev ./cmd/weft-dev

.PHONY: demo
demo: build stack ## the life of a job: deploy, query, gates, rollback, backfill, verify (KEEP=1 leaves it running)
	@WEFT=bin/weft STACK=bin/weft-dev SEED=$(SEED) scripts/demo.sh out/demo

.PHONY: demo-replay
demo-replay: build ## generate a payment environment, replay it, check the result against the truth (2 seconds)
	@WEFT=bin/weft ORDERS=$(ORDERS) SEED=$(SEED) scripts/demo-replay.sh out/demo-replay

.PHONY: test
test: ## check formatting, vet, build and test everything
	@unformatted=$$("$$($(GO) env GOROOT)/bin/gofmt" -l .); \
	  test -z "$$unformatted" || { echo "not formatted (run gofmt -w): $$unformatted" >&2; exit 1; }
	$(GO) build ./...
	$(GO) vet ./...
	$(GO) test -timeout 8m ./...
	@$(MAKE) --no-print-directory workflowcheck

.PHONY: workflowcheck
workflowcheck: ## look for clocks, chance and goroutines in workflows; a planted clock must be found
	cd internal/tools && $(GO) build -o ../../bin/workflowcheck go.temporal.io/sdk/contrib/tools/workflowcheck
	bin/workflowcheck -config internal/tools/workflowcheck.yaml ./workflows
	@if bin/workflowcheck -config internal/tools/workflowcheck.yaml ./internal/lint/testdata/clock >/dev/null 2>&1; then \
	  echo "workflowcheck did not find the clock in internal/lint/testdata/clock: it finds nothing" >&2; exit 1; fi

.PHONY: test-stack
test-stack: ## test the embedded servers and the whole way through them (the first build takes 6 minutes)
	cd devstack && $(GO) vet ./... && $(GO) test -timeout 30m ./...

.PHONY: chaos
chaos: ## the chaos test at full size: 200,000 purchases, 20 kills (10 minutes; CHAOS_SEED repeats a run)
	cd devstack && WEFT_CHAOS_ORDERS=200000 WEFT_CHAOS_KILLS=20 WEFT_CHAOS_SEED=$(CHAOS_SEED) $(GO) test -timeout 25m -count=1 -v -run 'TestChaos$$' ./e2e

.PHONY: chaos-rollout
chaos-rollout: ## kill each kind of process in each phase of a rollout (15 minutes; CHAOS_SEED repeats a run)
	cd devstack && WEFT_PHASES=all WEFT_PHASES_SEED=$(CHAOS_SEED) $(GO) test -timeout 45m -count=1 -v -run 'TestKillAtEveryPhase$$' ./e2e

.PHONY: rollbacks
rollbacks: ## measure rollbacks: 200 during a stream, 200 at rest, 20 with a control worker killed right before (8 minutes)
	cd devstack && WEFT_STREAM_ORDERS=30000 WEFT_STREAM_RATE=1500 WEFT_STREAM_ROLLBACKS=200 WEFT_ROLLBACKS=200 WEFT_ROLLBACK_KILLS=20 \
	  $(GO) test -timeout 30m -count=1 -v -run 'TestRolloutsDuringAStream$$|TestRollbackThroughFaults$$' ./e2e

.PHONY: bench
bench: build ## benchmarks of the packages, then the whole engine on 100,000 purchases
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchtime $(BENCHTIME) -benchmem $(PKG)
	@WEFT=bin/weft scripts/bench.sh out/bench

.PHONY: fuzz
fuzz: ## every fuzz target for a few seconds each (FUZZTIME=1m for longer)
	@GO=$(GO) FUZZTIME=$(FUZZTIME) scripts/fuzz.sh $(PKG)

.PHONY: clean
clean: ## remove what the targets above made
	rm -rf bin out
