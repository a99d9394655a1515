#!/usr/bin/env python3
"""make fuzz: builds the targets with clang and runs each for so many seconds, two at a time. A line of TAP a target;
build/reports/fuzz.json has the figures. An input that breaks a target stays in BUILD/fuzz/found/NAME: put it into
corpus/NAME with the repair. Exit status 1: something broke; 77: clang or its libFuzzer is missing.
usage: fuzz.py --build DIR [--seconds N] [--clang NAME] [--only NAME,NAME] [--keep]
  --keep    merge what was found into the corpora, as few and as small inputs as give the same coverage"""
import argparse, concurrent.futures, glob, json, os, re, shutil, subprocess, sys, tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
TIMEOUT_S = 10       # of one input, on a machine that does other things too
MALLOC_MB = 64       # what no file, however hostile, may ask for at once...
MALLOC_MB_OF = {"unpack": 160}    # ...but zstd, whose frames name a window of up to 128 MiB
RSS_MB = 1024        # with the sanitizers' shadow
INPUT_MAX = 4096     # bytes
INPUT_MAX_OF = {"nemo": 16384, "unpack": 8192, "gguf": 8192, "torch_zip": 8192}
CORPUS_MAX = 20000   # bytes of one target's corpus that --keep leaves: the largest inputs go first

options = argparse.ArgumentParser()
options.add_argument("--build", required=True)
options.add_argument("--seconds", type=int, default=600)
options.add_argument("--clang", default="clang")
options.add_argument("--only")
options.add_argument("--keep", action="store_true")
options = options.parse_args()
build = os.path.abspath(options.build)
os.chdir(os.path.join(HERE, "..", ".."))


def check_clang():
    with tempfile.TemporaryDirectory() as d:
        with open(d + "/t.c", "w") as f:
            f.write("int LLVMFuzzerTestOneInput(const char *p, unsigned long n); "
                    "int LLVMFuzzerTestOneInput(const char *p, unsigned long n) { return p && !n && 0; }\n")
        try:
            r = subprocess.run([options.clang, "-fsanitize=fuzzer,address,undefined", d + "/t.c", "-o", d + "/t"],
                               capture_output=True, text=True)
        except FileNotFoundError:
            return f"{options.clang} is missing: apt-get install clang, and libclang-rt-NN-dev of its version"
        if r.returncode == 0:
            return None
        version = re.search(r"version (\d+)", subprocess.run([options.clang, "--version"], capture_output=True, text=True).stdout)
        return f"libFuzzer is missing: apt-get install libclang-rt-{version.group(1) if version else 'NN'}-dev ({r.stderr.strip()[-200:]})"


def command(name, *args):
    return [f"{build}/fuzz/clang/{name}", f"-timeout={TIMEOUT_S}", f"-rss_limit_mb={RSS_MB}", f"-malloc_limit_mb={MALLOC_MB_OF.get(name, MALLOC_MB)}",
            f"-max_len={INPUT_MAX_OF.get(name, INPUT_MAX)}", "-print_final_stats=1", "-verbosity=1", *args]


def run(name):
    work, found, corpus = (f"{build}/fuzz/{d}/{name}" for d in ("work", "found", "corpus"))
    for d in (work, found):
        os.makedirs(d, exist_ok=True)
    before = set(os.listdir(found))
    cmd = command(name, f"-max_total_time={options.seconds}", "-use_value_profile=1", f"-artifact_prefix={found}/", work,
                  f"tests/fuzz/corpus/{name}")
    log = f"{build}/fuzz/{name}.log"
    with open(log, "wb") as out:
        r = subprocess.run(["nice", *cmd], stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    text = open(log, errors="replace").read()
    runs = re.findall(r"stat::number_of_executed_units: (\d+)", text) or re.findall(r"^#(\d+)\s", text, re.M)
    took = re.findall(r"Done \d+ runs in (\d+) second", text)
    cover = re.findall(r" cov: (\d+)", text)
    result = {"target": name, "seconds": int(took[-1]) if took else None, "executions": int(runs[-1]) if runs else 0,
              "edges": int(cover[-1]) if cover else 0,
              "crashes": sorted(set(os.listdir(found)) - before) or (["exit status %d" % r.returncode] if r.returncode else []),
              "command": " ".join(cmd).replace(build + "/", "")}
    if result["crashes"]:
        print("# " + "\n# ".join(text.splitlines()[-60:]))
    print(f"{'not ok' if result['crashes'] or not result['executions'] else 'ok'} - {name}: {result['executions']} executions in "
          f"{result['seconds']} s, {result['edges']} edges" + "".join(f"\n# {found}/{c}" for c in result["crashes"]), flush=True)
    return result


def keep(name):
    corpus, merged = f"tests/fuzz/corpus/{name}", f"{build}/fuzz/merged/{name}"
    shutil.rmtree(merged, ignore_errors=True)
    os.makedirs(merged)
    subprocess.run(command(name, "-merge=1", merged, corpus, f"{build}/fuzz/work/{name}"), check=True, capture_output=True)
    # Inputs with a name of their own are tests of what was once broken: they stay.
    for f in glob.glob(corpus + "/*"):
        if re.fullmatch("[0-9a-f]{40}", os.path.basename(f)):
            os.unlink(f)
    size = sum(os.path.getsize(f) for f in glob.glob(corpus + "/*"))
    for f in sorted(glob.glob(merged + "/*"), key=os.path.getsize):
        size += os.path.getsize(f)
        if size <= CORPUS_MAX:
            shutil.copy(f, corpus)


missing = check_clang()
if missing:
    print(f"make fuzz: {missing}")
    sys.exit(77)
subprocess.run(["make", "--no-print-directory", "-j2", f"BUILD={build}", f"FUZZ_CLANG={options.clang}", "fuzz-programs"], check=True,
               stdout=subprocess.DEVNULL)
names = options.only.split(",") if options.only else sorted(os.path.basename(f)[5:-2] for f in glob.glob("tests/fuzz/fuzz_*.c"))
for name in names:
    os.makedirs(f"tests/fuzz/corpus/{name}", exist_ok=True)
with concurrent.futures.ThreadPoolExecutor(2) as pool:
    results = list(pool.map(run, names))
commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
os.makedirs(build + "/reports", exist_ok=True)
with open(build + "/reports/fuzz.json", "w") as f:
    json.dump({"commit": commit, "targets": results}, f, indent=1)
    f.write("\n")
if options.keep:
    for name in names:
        keep(name)
sys.exit(1 if any(r["crashes"] or not r["executions"] for r in results) else 0)
