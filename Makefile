# softlaunch: two programs, `softlaunch` (command, agent, server) and `softlaunch-worker` (the engine).
#
#   make            both programs into $(BUILD)/bin
#   make worker     the worker alone (needs jansson, libcrypto, libyaml, PCRE2 and OpenBLAS only)
#   make test       installs what is missing, builds, runs every suite      make demo   the product at work
#   make asan       everything under $(BUILD)-asan with ASan and UBSan      make bench  side-by-side speeds
#   make test-long  the slow checks (live peers, sanitizers)           make fuzz   search for inputs that break a reader
#   make faults     thousands of runs under every fault in every state, 20 hits a cell
#   make screenshots  pictures of every page, and axe-core's opinion
#   make lint       folder rules, clang-tidy, cppcheck                      make format clang-format
#
# Sources are found by folder: a new .c file in a part's folder belongs to that part. BUILD=dir builds elsewhere.
BUILD   ?= build
CUDA    ?= auto
CC      ?= gcc
PKG     := PKG_CONFIG_PATH="$(PKG_CONFIG_PATH)" pkg-config
MAKEFLAGS += --no-builtin-rules
.SUFFIXES:
.DELETE_ON_ERROR:
.SECONDARY:
.DEFAULT_GOAL := all

WARN    := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla
CFLAGS  ?= -O2 -g
ALL_CFLAGS = -std=c11 -D_GNU_SOURCE $(WARN) $(CFLAGS) $(EXTRA_CFLAGS) -I. -I$(BUILD) -fno-common -MMD -MP \
             -DSL_VERSION='"$(VERSION)"'
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)

# ---- what each part is made of and stands on -------------------------------------------------------------
src = $(sort $(wildcard $(1)/*.c))
BASE      := $(call src,base)
ARTIFACTS := $(call src,artifacts)
QUEUE     := $(call src,queue)
AGENT     := $(call src,agent)
SERVER    := $(call src,server)
CLI       := $(call src,cli)
# engine/worker.c is the worker's main. The command never links the engine: it execs the worker.
# engine/text/spm.cc, the one C++ file, wraps SentencePiece's library.
ENGINE    := $(foreach d,engine engine/cpu engine/data engine/format engine/text,$(call src,$(d))) engine/text/spm.cc

ifneq ($(filter-out deps clean format,$(or $(MAKECMDGOALS),all)),)
BASE_LIBS   := $(shell $(PKG) --libs jansson libcrypto yaml-0.1 2>/dev/null)
PCRE_LIBS   := $(shell $(PKG) --libs libpcre2-8 zlib 2>/dev/null)
TEXT_LIBS   := $(shell $(PKG) --libs libutf8proc 2>/dev/null || echo -lutf8proc) -lsentencepiece -lstdc++
BLAS_LIBS   := $(shell $(PKG) --libs openblas 2>/dev/null || echo -lopenblas)
NET_LIBS    := $(shell $(PKG) --libs libcurl expat libarchive hiredis libmicrohttpd libssl sqlite3 libzstd zlib 2>/dev/null)
PKG_CFLAGS  := $(shell $(PKG) --cflags jansson libcrypto yaml-0.1 libpcre2-8 2>/dev/null)
PKG_CFLAGS_NET := $(shell $(PKG) --cflags libcurl expat libarchive hiredis libmicrohttpd libssl sqlite3 libzstd 2>/dev/null)
BLAS_CFLAGS := $(shell $(PKG) --cflags openblas 2>/dev/null)
endif

# CUDA=auto builds the CUDA backend where nvcc is, CUDA=1 insists on it, CUDA=0 leaves it out.
NVCC      ?= nvcc
NVCC_PATH := $(if $(filter 0,$(CUDA)),,$(shell command -v $(NVCC) 2>/dev/null))
ifeq ($(CUDA)$(NVCC_PATH),1)
$(error CUDA=1, but $(NVCC) was not found: install the CUDA toolkit or say NVCC=/path/to/nvcc)
endif
ifneq ($(filter-out deps clean format lint,$(or $(MAKECMDGOALS),all)),)
ifeq ($(MAKELEVEL),0)
$(info CUDA backend: $(if $(NVCC_PATH),built with $(NVCC_PATH),$(if $(filter 0,$(CUDA)),left out,no nvcc: left out)) (CUDA=$(CUDA)))
endif
endif
CUDA_SO := $(if $(NVCC_PATH),$(BUILD)/bin/libsoftlaunch-cuda.so)

obj = $(patsubst %,$(BUILD)/%.o,$(basename $(1)))
$(BUILD)/engine/%.o: ALL_CFLAGS += -O3 -fopenmp $(BLAS_CFLAGS)
# Standard C11 would forbid fused multiply-add; errno and traps would keep loops from being vectorised.
$(BUILD)/engine/cpu/%.o: ALL_CFLAGS += -ffp-contract=fast -fno-math-errno -fno-trapping-math

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	@$(if $(V),,echo '  cc  $<';) $(CC) $(ALL_CFLAGS) $(PKG_CFLAGS) $(PKG_CFLAGS_NET) -c $< -o $@
$(BUILD)/%.o: %.cc
	@mkdir -p $(@D)
	@$(if $(V),,echo '  c++ $<';) $(CXX) -std=c++17 -Wall -Wextra -Werror -Wshadow $(CFLAGS) $(EXTRA_CFLAGS) -I. -MMD -MP -c $< -o $@

# ---- files embedded at build time: Lua scripts, the job schema, static pages --------------------------------
# An embedded file a/b.c-d becomes the string sl_embed_a_b_c_d with its length in sl_embed_a_b_c_d_len.
EMBED   := $(sort $(wildcard queue/scripts/*.lua) $(wildcard base/*.schema.json) $(wildcard server/static/*) $(wildcard server/openapi/*.json))
EMBED_O := $(patsubst %,$(BUILD)/embed/%.o,$(EMBED))
$(BUILD)/embed/%.o: % tests/embed.sh
	@mkdir -p $(@D)
	sh tests/embed.sh $< > $(@:.o=.c)
	$(CC) -std=c11 -c $(@:.o=.c) -o $@

# Debian's Chart.js (package libjs-chart.js); CHART_JS=path takes another build of it.
CHART_JS ?= /usr/share/javascript/chart.js/chart.min.js
$(BUILD)/embed/chart.o: $(CHART_JS) tests/embed.sh
	@mkdir -p $(@D)
	sh tests/embed.sh $< chart_js > $(@:.o=.c)
	$(CC) -std=c11 -c $(@:.o=.c) -o $@

lib = $(BUILD)/lib/lib$(1).a
$(call lib,base):      $(call obj,$(BASE)) $(filter $(BUILD)/embed/base/%,$(EMBED_O))
$(call lib,engine):    $(filter-out $(BUILD)/engine/worker.o,$(call obj,$(ENGINE)))
$(call lib,artifacts): $(call obj,$(ARTIFACTS))
$(call lib,queue):     $(call obj,$(QUEUE)) $(filter $(BUILD)/embed/queue/%,$(EMBED_O))
$(call lib,agent):     $(call obj,$(AGENT))
$(call lib,server):    $(call obj,$(SERVER)) $(filter $(BUILD)/embed/server/%,$(EMBED_O)) $(BUILD)/embed/chart.o
$(BUILD)/lib/%.a:
	@mkdir -p $(@D)
	@rm -f $@
	ar rcs $@ $^

CMD_LIBS    := $(foreach l,agent server queue artifacts base,$(call lib,$(l)))
WORKER_LIBS := $(foreach l,engine base,$(call lib,$(l)))

$(BUILD)/bin/softlaunch: $(call obj,$(CLI)) $(CMD_LIBS)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(EXTRA_CFLAGS) -o $@ $(call obj,$(CLI)) $(CMD_LIBS) $(NET_LIBS) $(BASE_LIBS) -lm -lpthread
$(BUILD)/bin/softlaunch-worker: $(BUILD)/engine/worker.o $(WORKER_LIBS)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(EXTRA_CFLAGS) -fopenmp -o $@ $< $(WORKER_LIBS) $(PCRE_LIBS) $(TEXT_LIBS) $(BLAS_LIBS) $(BASE_LIBS) -lm -lpthread -ldl

# A library that the worker loads when it is there (engine/backend.h): machine code for compute capability 8.0 and
# 9.0, PTX for what comes later. Of the rest of the program it has
# base/err.c, not exported.
NVCC_ARCH  ?= -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=[sm_90,compute_90]
NVCC_FLAGS  = -std=c++20 -O3 -lineinfo -I. -MMD -MP $(NVCC_ARCH) -Werror all-warnings \
              -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra,-Werror,-fopenmp
# What uses Hopper's own instructions is for compute capability 9.0 alone; such kernels run nowhere else.
$(BUILD)/cuda/%_hopper.o $(BUILD)/cuda/%_hopper_back.o: override NVCC_ARCH := -gencode arch=compute_90a,code=sm_90a
CUDA_O     := $(patsubst %.cu,$(BUILD)/%.o,$(sort $(wildcard cuda/*.cu)))
$(BUILD)/cuda/%.o: cuda/%.cu
	@mkdir -p $(@D)
	@$(if $(V),,echo '  nvcc $<';) $(NVCC) $(NVCC_FLAGS) -MF $(@:.o=.d) -c $< -o $@
CUDA_BASE_O := $(patsubst base/%.c,$(BUILD)/cuda/base_%.o,base/err.c)
$(BUILD)/cuda/base_%.o: base/%.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -fPIC -fvisibility=hidden -c $< -o $@
$(BUILD)/bin/libsoftlaunch-cuda.so: $(CUDA_O) $(CUDA_BASE_O)
	@mkdir -p $(@D)
	$(NVCC) -shared $(NVCC_ARCH) -o $@ $^ -lcublasLt -lgomp -Xlinker --no-undefined,-rpath,$(patsubst %/bin/nvcc,%,$(NVCC_PATH))/lib64

.PHONY: screenshots all worker command deps bench-artifacts test test-long faults test-programs demo asan bench lint format clean unit man
all: command worker
command: $(BUILD)/bin/softlaunch
worker: $(BUILD)/bin/softlaunch-worker $(CUDA_SO)

# ---- tests ---------------------------------------------------------------------------------------------------
# tests/unit/test_NAME.c and tests/ops/test_NAME.c each make one cmocka program of that name.
UNIT := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/unit/test_*.c tests/ops/test_*.c))
$(BUILD)/tests/unit/% $(BUILD)/tests/ops/% $(BUILD)/tests/bench/%: ALL_CFLAGS += -fopenmp $(BLAS_CFLAGS)
TEST_O := $(patsubst %,$(BUILD)/tests/%.o,golden/golden golden/golden_train unit/tiny_model unit/reference unit/gguf_make)
$(BUILD)/tests/%: $(BUILD)/tests/%.o $(TEST_O) $(WORKER_LIBS) $(CMD_LIBS)
	$(CC) $(CFLAGS) $(EXTRA_CFLAGS) -fopenmp -o $@ $< $(TEST_O) $(call lib,agent) $(call lib,server) $(call lib,queue) \
	  $(call lib,artifacts) $(WORKER_LIBS) -lcmocka $(NET_LIBS) $(PCRE_LIBS) $(TEXT_LIBS) $(BLAS_LIBS) $(BASE_LIBS) -lm -lpthread -ldl
unit: $(UNIT)

deps:
	deploy/install-deps.sh

# A second make, so that pkg-config is asked only after its packages are there.
test: deps
	$(MAKE) --no-print-directory -j2 all unit test-programs
	tests/run.sh $(BUILD) "$(or $(SUITE),.)"

test-long: deps
	$(MAKE) --no-print-directory -j2 all unit test-programs
	tests/run.sh $(BUILD) "$(or $(SUITE),.)" tests/LONG

asan:
	$(MAKE) --no-print-directory -j2 BUILD=$(BUILD)-asan CUDA=0 CFLAGS="-O1 -g -fno-omit-frame-pointer" \
	  EXTRA_CFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined" all unit test-programs

faults: deps
	$(MAKE) --no-print-directory -j2 all test-programs
	SL_BUILD=$(BUILD) tests/faults/matrix.py

# Manual pages, of what the commands say of themselves, in $(BUILD)/man/man1.
man: command worker
	deploy/man.sh $(BUILD)/bin $(BUILD)/man

lint:
	tests/lint.sh

format:
	git ls-files '*.c' '*.h' | xargs clang-format -i

bench: deps
	$(MAKE) --no-print-directory -j2 all test-programs
	tests/bench/run.sh $(BUILD)

# Every page at desktop and phone width, light and dark, in $(BUILD)/screenshots; needs chromium.
screenshots: deps
	$(MAKE) --no-print-directory -j2 all
	SL_BUILD=$(BUILD) python3 tests/web/screenshots.py
# Needs curl, aria2 and s3cmd beside what `make deps` installs.
bench-artifacts: deps
	$(MAKE) --no-print-directory -j2 command
	SL_BUILD=$(BUILD) $$(tests/peer-python.sh) tests/bench/bench_artifacts.py

demo: deps
	$(MAKE) --no-print-directory -j2 all
	deploy/demo.sh $(BUILD)

# Programs that test scripts drive: rules above add theirs to TEST_PROGRAMS.
TEST_PROGRAMS += $(BUILD)/tests/golden/tok_dump $(patsubst %,$(BUILD)/tests/bench/bench_%,step gpu encoder matmul rows queue scripts attention)
include tests/fuzz/rules.mk
include tests/faults/rules.mk
test-programs: $(TEST_PROGRAMS)

clean:
	rm -rf $(BUILD) $(BUILD)-asan

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
