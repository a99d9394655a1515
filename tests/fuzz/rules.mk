# The fuzz targets (tests/fuzz/fuzz_NAME.c), each built twice, every object with ASan and UBSan:
#   $(BUILD)/fuzz/replay/NAME   gcc and replay.c: runs the corpus in `make test`
#   $(BUILD)/fuzz/clang/NAME    clang's libFuzzer: `make fuzz` searches for FUZZ_S seconds a target, two at a time
FUZZ_S       ?= 600
FUZZ_CLANG   ?= clang
FUZZ_TARGETS := $(patsubst tests/fuzz/fuzz_%.c,%,$(sort $(wildcard tests/fuzz/fuzz_*.c)))
# The parts that read what comes from outside; of the engine not what computes and trains.
FUZZ_SRC := $(BASE) $(addprefix artifacts/,manifest.c names.c pack.c tree.c unpack.c unpack_child.c) tests/fuzz/fuzz.c tests/fuzz/model.c \
            $(addprefix engine/,config.c weights.c batch.c) $(addprefix engine/data/,dataset.c template.c squad.c) \
            $(filter-out engine/format/convert.c,$(call src,engine/format)) $(call src,engine/text) engine/text/spm.cc
FUZZ_CFLAGS  = -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined \
               -D_GNU_SOURCE -Wno-unknown-pragmas -I. -I$(BUILD) -fno-common -MMD -MP \
               -DSL_VERSION='"$(VERSION)"' $(PKG_CFLAGS) $(PKG_CFLAGS_NET)
FUZZ_LIBS    = -Wl,--wrap=sl_map_open -Wl,--wrap=sl_map_close $(NET_LIBS) $(PCRE_LIBS) $(TEXT_LIBS) $(BASE_LIBS) -lm -lpthread

# KIND, compiler, flags for every object, flags of the link, objects with a main
comma := ,
define fuzz_kind
$(BUILD)/fuzz/$(1)/%.o: %.c tests/fuzz/rules.mk
	@mkdir -p $$(@D)
	@echo '  $(1)  $$<'; $(2) -std=c11 $(WARN) $$(FUZZ_CFLAGS) $(3) -c $$< -o $$@
$(BUILD)/fuzz/$(1)/%.o: %.cc tests/fuzz/rules.mk
	@mkdir -p $$(@D)
	@echo '  $(1)  $$<'; $(2) -std=c++17 $$(FUZZ_CFLAGS) $(3) -c $$< -o $$@
$(BUILD)/fuzz/$(1)/parts.a: $(addprefix $(BUILD)/fuzz/$(1)/,$(addsuffix .o,$(basename $(FUZZ_SRC)))) $(filter $(BUILD)/embed/base/%,$(EMBED_O))
	@rm -f $$@
	@ar rcs $$@ $$^
$(BUILD)/fuzz/$(1)/%: $(BUILD)/fuzz/$(1)/tests/fuzz/fuzz_%.o $(5) $(BUILD)/fuzz/$(1)/parts.a
	@echo "  $(1)  $$(@F)"; $(2) $$(FUZZ_CFLAGS) $(4) -o $$@ $$^ $$(FUZZ_LIBS)
endef
$(eval $(call fuzz_kind,replay,$(CC),,,$(BUILD)/fuzz/replay/tests/fuzz/replay.o))
$(eval $(call fuzz_kind,clang,$(FUZZ_CLANG),-fsanitize=fuzzer-no-link -Wno-string-concatenation -fno-sanitize=vptr$(comma)function,-fsanitize=fuzzer,))

TEST_PROGRAMS += $(addprefix $(BUILD)/fuzz/replay/,$(FUZZ_TARGETS))
.PHONY: fuzz fuzz-programs
fuzz-programs: $(addprefix $(BUILD)/fuzz/clang/,$(FUZZ_TARGETS))
fuzz: deps
	tests/fuzz/fuzz.py --build $(BUILD) --seconds $(FUZZ_S) --clang $(FUZZ_CLANG)
