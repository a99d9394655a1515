# Programs of tests/faults: the command with fault points (base/fault.h), and with scripts that are wrong on purpose.
# Only what differs is compiled again; linked before the libraries, it takes the place of what they hold.
FAULT_SRC := $(shell grep -l 'sl_fault_point' $(AGENT) $(ARTIFACTS) $(BASE))
FAULT_O   := $(patsubst %.c,$(BUILD)/faults/%.o,$(FAULT_SRC))
CMD_LINK   = $(CC) $(CFLAGS) $(EXTRA_CFLAGS) -o $@ $(call obj,$(CLI)) $(1) $(CMD_LIBS) $(NET_LIBS) $(BASE_LIBS) -lm -lpthread
$(BUILD)/faults/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -DSL_FAULT_POINTS $(PKG_CFLAGS) $(PKG_CFLAGS_NET) -c $< -o $@
$(BUILD)/faults/softlaunch: $(call obj,$(CLI)) $(FAULT_O) $(CMD_LIBS)
	$(call CMD_LINK,$(FAULT_O))

# tests/faults/mutants/NAME.sed: its first line names the script, "# script: finish.lua".
MUTANTS := $(patsubst tests/faults/mutants/%.sed,$(BUILD)/faults/mutant-%,$(sort $(wildcard tests/faults/mutants/*.sed)))
$(BUILD)/faults/mutant-%: tests/faults/mutants/%.sed tests/faults/mutate.sh $(call obj,$(CLI)) $(FAULT_O) $(CMD_LIBS) $(wildcard queue/scripts/*.lua)
	tests/faults/mutate.sh $< $(BUILD)/faults/mutants/$* "$(CC)"
	$(call CMD_LINK,$(FAULT_O) $(BUILD)/faults/mutants/$*/mutant.o)

$(BUILD)/faults/worker: tests/faults/worker.c $(call lib,base)
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(PKG_CFLAGS) -o $@ $< $(call lib,base) $(BASE_LIBS) -lpthread
$(patsubst %,$(BUILD)/faults/%.so,clock fsync pidfd nvml): $(BUILD)/faults/%.so: tests/faults/%.c
	@mkdir -p $(@D)
	$(CC) -std=c11 -D_GNU_SOURCE $(WARN) -O2 -fPIC -shared -o $@ $<

# A device that fails on request (tests/faults/device.c), on the CPU's operations or on the real library.
# Of base it keeps what the CPU backend uses.
DEVICE_SRC := tests/faults/device.c $(BASE) $(call src,engine/cpu)
DEVICE_O   := $(patsubst %.c,$(BUILD)/faults/device/%.o,$(DEVICE_SRC))
# Sanitizers keep what nobody uses, so they are left out here.
$(BUILD)/faults/device/%: override EXTRA_CFLAGS :=
$(BUILD)/faults/device/%.o: ALL_CFLAGS += -fopenmp -fPIC -fvisibility=hidden -ffunction-sections -ffp-contract=fast -fno-math-errno -fno-trapping-math $(BLAS_CFLAGS)
$(BUILD)/faults/device/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(PKG_CFLAGS) -c $< -o $@
$(BUILD)/faults/device/libsoftlaunch-cuda.so: $(DEVICE_O)
	$(CC) $(CFLAGS) $(EXTRA_CFLAGS) -shared -fopenmp -Wl,--gc-sections -o $@ $^ $(BLAS_LIBS) $(BASE_LIBS) -lm -lpthread -ldl
-include $(FAULT_O:.o=.d) $(DEVICE_O:.o=.d)

TEST_PROGRAMS += $(BUILD)/faults/softlaunch $(BUILD)/faults/worker $(patsubst %,$(BUILD)/faults/%.so,clock fsync pidfd nvml) $(BUILD)/faults/device/libsoftlaunch-cuda.so $(MUTANTS)
