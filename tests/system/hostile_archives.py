#!/usr/bin/env python3
"""Tarballs from somebody who means harm, made by Python's tarfile and by hand: each is refused with a sentence, makes
nothing outside of its folder and leaves nothing behind. Environment: SL_BIN or SL_BUILD. Prints TAP."""
import bz2, ctypes, ctypes.util, gzip, io, json, lzma, os, shutil, subprocess, sys, tarfile, tempfile, time

BIN = os.path.join(os.environ.get("SL_BIN") or os.path.join(os.environ.get("SL_BUILD", "build"), "bin"), "softlaunch")
ROOM = tempfile.mkdtemp(prefix="sl-hostile-")
CANARY = ROOM + "/canary"
KINDS = {}


def kind(f):
    KINDS[f.__name__] = f
    return f


# ---- making archives ----

def entry(name, data=b"x", type=tarfile.REGTYPE, **more):
    t = tarfile.TarInfo(name)
    t.type, t.size = type, len(data) if type in (tarfile.REGTYPE, tarfile.CONTTYPE) else 0
    for k, v in more.items():
        setattr(t, k, v)
    return t, data


def tar(*entries, format=tarfile.GNU_FORMAT, good=True, end=True):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as a:
        for t, data in ([entry("good.txt")] if good else []) + list(entries):
            a.addfile(t, io.BytesIO(data) if t.size else None)
    return out.getvalue() if end else out.getvalue().rstrip(b"\0")


def raw(name, size_field, type=b"0", data=b""):
    """A ustar header by hand, with its checksum right."""
    h = bytearray(512)
    h[0:len(name)] = name
    h[100:108], h[108:116], h[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    h[124:136], h[136:148], h[148:156] = size_field.ljust(12, b"\0"), b"00000000000\0", b" " * 8
    h[156:157], h[257:265] = type, b"ustar\00000"
    h[148:156] = b"%06o\0 " % sum(h)
    return bytes(h) + data


def zstd(data):
    lib = ctypes.CDLL(ctypes.util.find_library("zstd") or "libzstd.so.1")
    lib.ZSTD_compressBound.restype = lib.ZSTD_compress.restype = ctypes.c_size_t
    lib.ZSTD_compressBound.argtypes = [ctypes.c_size_t]
    lib.ZSTD_compress.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int]
    out = ctypes.create_string_buffer(lib.ZSTD_compressBound(len(data)))
    n = lib.ZSTD_compress(out, len(out), data, len(data), 3)
    return out.raw[:n]


def link(name, target, type=tarfile.SYMTYPE):
    return entry(name, type=type, linkname=target)


# ---- paths ----

@kind
def dotdot(): return tar(entry("../canary"))
@kind
def dotdot_within(): return tar(entry("a/../../canary"))
@kind
def dotdot_behind_dot(): return tar(entry("./../canary"))
@kind
def dotdot_alone(): return tar(entry("..", type=tarfile.DIRTYPE))
@kind
def absolute(): return tar(entry(CANARY))
@kind
def absolute_twice(): return tar(entry("/" + CANARY))
@kind
def gnu_long_name(): return tar(entry("a/" * 4 + "b" * 90 + "/../../../../../../canary"))
@kind
def pax_path(): return tar(entry("fine", pax_headers={"path": "../canary"}), format=tarfile.PAX_FORMAT)
@kind
def pax_absolute(): return tar(entry("fine", pax_headers={"path": CANARY}), format=tarfile.PAX_FORMAT)
@kind
def backslash(): return tar(entry("..\\canary"))
@kind
def drive(): return tar(entry("C:\\canary"))
@kind
def newline(): return tar(entry("a\nb"))
@kind
def escape_sequence(): return tar(entry("a\x1b[2Jb"))
@kind
def not_utf8(): return tar(good=True, end=False) + raw(b"\xff\xfe", b"00000000001", data=b"x" * 512) + bytes(1024)
@kind
def empty_part(): return tar(entry("a//b"))
@kind
def too_deep(): return tar(entry("/".join("d" * 40)))
@kind
def too_long(): return tar(entry("/".join(["n" * 250] * 6)))

# ---- links and other kinds ----

@kind
def symlink_absolute(): return tar(link("l", CANARY))
@kind
def symlink_relative(): return tar(link("l", "../canary"))
@kind
def symlink_then_file(): return tar(link("l", ".."), entry("l/canary"))
@kind
def symlink_replaced_by_folder(): return tar(link("l", ".."), entry("l", type=tarfile.DIRTYPE), entry("l/canary"))
@kind
def symlink_within(): return tar(link("l", "good.txt"))
@kind
def symlink_loop(): return tar(link("l", "m"), link("m", "l"))
@kind
def hardlink_outside(): return tar(link("l", "../canary", tarfile.LNKTYPE))
@kind
def hardlink_absolute(): return tar(link("l", "/etc/passwd", tarfile.LNKTYPE))
@kind
def hardlink_then_written(): return tar(link("l", CANARY, tarfile.LNKTYPE), entry("l", b"overwritten"))
@kind
def pax_linkpath(): return tar(link("l", "good.txt", tarfile.LNKTYPE)[:1] and entry("l", type=tarfile.SYMTYPE, linkname="x",
                               pax_headers={"linkpath": CANARY}), format=tarfile.PAX_FORMAT)
@kind
def character_device(): return tar(entry("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3))
@kind
def block_device(): return tar(entry("disk", type=tarfile.BLKTYPE, devmajor=8, devminor=0))
@kind
def pipe(): return tar(entry("pipe", type=tarfile.FIFOTYPE))

# ---- one thing over another ----

@kind
def twice(): return tar(entry("a"), entry("a"))
@kind
def file_as_folder(): return tar(entry("a"), entry("a/b"))
@kind
def folder_as_file(): return tar(entry("a", type=tarfile.DIRTYPE), entry("a"))

# ---- sizes ----

@kind
def gzip_bomb(): return gzip.compress(tar(entry("zeros", bytes(192 << 20))), 9)
@kind
def zstd_bomb(): return zstd(tar(entry("zeros", bytes(192 << 20))))
@kind
def gzip_in_gzip_bomb(): return gzip.compress(gzip.compress(tar(entry("zeros", bytes(192 << 20))), 9), 9)
@kind
def gzip_forty_deep():
    data = tar(entry("a"))
    for _ in range(40):
        data = gzip.compress(data)
    return data
@kind
def sparse_bomb():
    """GNU sparse: one block, said to be a file of 100 TB."""
    h = bytearray(raw(b"sparse", b"00000001000", b"S", b"")[:512])
    h[257:265] = b"ustar  \0"
    h[386:398], h[398:410] = b"00000000000\0", b"00000001000\0"
    h[483:495] = b"\x80" + (100 << 40).to_bytes(11, "big")
    h[148:156] = b" " * 8
    h[148:156] = b"%06o\0 " % sum(h)
    return bytes(h) + bytes(512 + 1024)
@kind
def size_too_large(): return raw(b"big", b"\x80" + (1 << 60).to_bytes(11, "big")) + bytes(1024)
@kind
def size_negative(): return raw(b"neg", b"\xff" * 12) + bytes(1024)
@kind
def size_not_a_number(): return raw(b"odd", b"99999999999", data=b"x") + bytes(1024)
@kind
def size_lies(): return raw(b"lies", b"00000100000", data=b"x" * 512)
@kind
def too_many_entries(): return gzip.compress(tar(*(entry(f"f{i}", b"") for i in range(10_001))))

# ---- damaged, and not what it is called ----

@kind
def cut(): return tar(entry("a", b"x" * 5000))[:2000]
@kind
def gzip_cut(): return gzip.compress(tar(entry("a", os.urandom(5000))))[:3000]
@kind
def zstd_cut(): return zstd(tar(entry("a", os.urandom(5000))))[:3000]
@kind
def gzip_damaged():
    data = bytearray(gzip.compress(tar(entry("a", os.urandom(50_000)))))
    data[25_000] ^= 0x55
    return bytes(data)
@kind
def checksum_wrong():
    data = bytearray(tar(entry("a")))
    data[1024 + 3] ^= 0x55
    return bytes(data)
@kind
def nothing(): return b""
@kind
def no_file(): return tar(entry("d", type=tarfile.DIRTYPE), good=False)
@kind
def text(): return b"this is not an archive\n" * 100
@kind
def a_zip():
    import zipfile
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("../canary", "x")
    return out.getvalue()
@kind
def a_cpio(): return b"070701" + b"0" * 104 + b"../canary\0"
@kind
def xz(): return lzma.compress(tar(entry("a")))
@kind
def bzip2(): return bz2.compress(tar(entry("a")))


# ---- unpacking them ----

def unpack(name, data, ending):
    run_dir = f"{ROOM}/run"
    os.makedirs(run_dir)
    path = f"{ROOM}/archive{ending}"
    open(path, "wb").write(data)
    plan = {"cache": ROOM + "/cache", "allow_paths": [ROOM], "run_dir": run_dir,
            "items": [{"ref": path, "dest": "inputs/it", "unpack": True}]}
    json.dump(plan, open(ROOM + "/plan.json", "w"))
    p = subprocess.run([BIN, "transfer", "fetch", "--plan", ROOM + "/plan.json"], capture_output=True, timeout=300)
    events = [json.loads(line) for line in p.stdout.splitlines()]
    return p, events[-1] if events else {}


def tree(folder):
    found = {}
    for where, dirs, files in os.walk(folder):
        for f in dirs + files:
            path = os.path.join(where, f)
            st = os.lstat(path)
            found[os.path.relpath(path, folder)] = (st.st_mode, st.st_size, st.st_nlink)
    return found


def check_refused(name, data):
    open(CANARY, "w").write("untouched")
    outside = set(os.listdir(ROOM)) | {"run", "archive.tar", "plan.json", "cache"}
    start = time.monotonic()
    p, result = unpack(name, data, ".tar")
    assert p.returncode == 1, f"exit {p.returncode}: {p.stderr.decode()[-500:]}"
    assert result.get("state") == "failed" and result["cause"] == "data", result
    assert len(result["msg"]) > 20, result
    left = {k: v for k, v in tree(ROOM + "/run").items() if k != "inputs"}
    assert not left, f"left behind: {left}"
    assert open(CANARY).read() == "untouched" and os.lstat(CANARY).st_nlink == 1
    assert set(os.listdir(ROOM)) <= outside, set(os.listdir(ROOM)) - outside
    return result["msg"].split(": ", 1)[-1][:90] + f" ({time.monotonic() - start:.1f} s)"


def good_ones_come_out_with_safe_modes():
    data = tar(entry("run.sh", b"echo", mode=0o7777), entry("d", type=tarfile.DIRTYPE, mode=0o1777), entry("./d/x/y", b"deep"),
               entry("ünï/cödé", b"u"), good=False)
    for ending, bytes_ in ((".tar", data), (".tar.gz", gzip.compress(data)), (".tar.zst", zstd(data))):
        p, result = unpack("good", bytes_, ending)
        assert p.returncode == 0, result
        got = tree(ROOM + "/run/inputs/it")
        assert sorted(got) == sorted(["run.sh", "d", "d/x", "d/x/y", "ünï", "ünï/cödé"]), got
        for path, (mode, _, _) in got.items():
            assert mode & 0o7022 == 0, (path, oct(mode))
        assert open(ROOM + "/run/inputs/it/d/x/y").read() == "deep"
        shutil.rmtree(ROOM + "/run")


def main():
    bad = 0
    try:
        good_ones_come_out_with_safe_modes()
        print("ok - good ones come out, with safe modes")
        for name, make in KINDS.items():
            try:
                print(f"ok - {name}: " + check_refused(name, make()).replace("#", "").replace("\n", " "), flush=True)
            except Exception as e:
                bad += 1
                print(f"not ok - {name}\n# {e!r}", flush=True)
            shutil.rmtree(ROOM + "/run", ignore_errors=True)
        print(f"# {len(KINDS)} kinds")
    finally:
        shutil.rmtree(ROOM, ignore_errors=True)
    return 1 if bad or len(KINDS) < 30 else 0


sys.exit(main())
