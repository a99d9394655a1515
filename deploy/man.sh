#!/bin/sh
# Manual pages from what `softlaunch COMMAND --help` says: softlaunch.1 and softlaunch-COMMAND.1, in mdoc.
# usage: deploy/man.sh FOLDER-OF-PROGRAMS OUTPUT-FOLDER (its man1 gets the pages)
set -eu
bin=$1 out=$2/man1
mkdir -p "$out"
date=$(LC_ALL=C date -u ${SOURCE_DATE_EPOCH:+-d @$SOURCE_DATE_EPOCH} '+%B %-d, %Y')
commands=$("$bin/softlaunch" help | sed -n 's/^  \([a-z]*\)  *\(.*\)/\1 \2/p')

page() { # name, its line for NAME; the help text comes in
    awk -v name="$1" -v about="$2" -v date="$date" -v all="$(echo "$commands" | sort)" '
    function esc(s) { gsub(/\\/, "\\e", s); gsub(/"/, "\\(dq", s); return s }
    # Running text: a line a sentence, and none too long.
    function text(s,   w, n, i, line) {
        n = split(esc(s), w, / +/)
        for (i = 1; i <= n; i++) {
            if (w[i] == "") continue
            if (line != "" && length(line) + length(w[i]) > 76) { put(line); line = "" }
            line = line == "" ? w[i] : line " " w[i]
            if (w[i] ~ /[a-z0-9)`][.]$/ && i < n) { put(line); line = "" }
        }
        if (line != "") put(line)
    }
    function put(line) { print (line ~ /^[.\x27]/ ? "\\&" : "") line }
    function section(s) {
        if (now == s) return
        if (list) { print ".El"; list = 0 }
        print ".Sh " s
        now = s
    }
    function flush_item() {
        if (term == "") return
        section("OPTIONS")
        if (!list) { print ".Bl -tag -width Ds"; list = 1 }
        print ".It Li \"" esc(term) "\""
        text(rest)
        term = rest = ""
    }
    function flush_para() {
        if (para == "") return
        if (now == "DESCRIPTION") print ".Pp"
        section("DESCRIPTION")
        text(para)
        para = ""
    }
    function flush_all() { flush_item(); flush_para() }
    function synopsis(   i, k, n, w, line) {
        for (i = 1; i <= ns; i++) {
            if (i > 1) print ".Pp"
            print ".Bd -literal -compact"
            n = split(syn[i], w, / +/); line = ""
            for (k = 1; k <= n; k++) {
                if (length(line) + length(w[k]) > 74) { put(esc(line)); line = "    " w[k] }
                else line = line == "" ? w[k] : line " " w[k]
            }
            put(esc(line)); print ".Ed"
        }
    }
    BEGIN {
        title = name
        print ".Dd " date; print ".Dt " toupper(title) " 1"; print ".Os"
        print ".Sh NAME"; print ".Nm " name; print ".Nd " esc(about)
        print ".Sh SYNOPSIS"; now = "SYNOPSIS"
    }
    /^usage: / || (now == "SYNOPSIS" && /^       *softlaunch/) {
        sub(/^usage: +/, ""); sub(/^ +/, ""); syn[++ns] = $0; next
    }
    now == "SYNOPSIS" && ns && !body && /^          / { sub(/^ +/, ""); syn[ns] = syn[ns] " " $0; next }
    !body { body = 1; synopsis() }
    /^$/ { flush_all(); next }
    /^  -/ || /^  [a-z|]+  / {
        flush_all(); line = substr($0, 3)
        if (match(line, /  +/)) { term = substr(line, 1, RSTART - 1); rest = substr(line, RSTART + RLENGTH) }
        else if (match(line, /^--[a-z-]+ [A-Z][A-Za-z:|.]*/)) { term = substr(line, 1, RLENGTH); rest = substr(line, RLENGTH + 1) }
        else { term = line; rest = "" }
        next
    }
    /^   / && term != "" { sub(/^ +/, ""); rest = rest " " $0; next }
    { flush_item(); sub(/^ +/, ""); para = para == "" ? $0 : para " " $0 }
    END {
        if (!body) synopsis()
        flush_all()
        if (list) print ".El"
        print ".Sh EXIT STATUS\n0: done.\n1: failed; one line on standard error says what, where and what to do.\n2: wrong usage."
        print ".Sh SEE ALSO"
        n = split(all, lines, "\n"); sep = ""
        if (name != "softlaunch") { printf ".Xr softlaunch 1"; sep = " ,\n" }
        for (i = 1; i <= n; i++) {
            split(lines[i], w, " ")
            if ("softlaunch-" w[1] != name) { printf "%s.Xr softlaunch-%s 1", sep, w[1]; sep = " ,\n" }
        }
        print ""
    }'
}

"$bin/softlaunch" help | page softlaunch "adapt a frozen GPT model to many tasks, as queued runs" >"$out/softlaunch.1"
echo "$commands" | while read -r command about; do
    { "$bin/softlaunch" "$command" --help 2>&1 </dev/null || true; } | sed '/unrecognized option/d' |
        page "softlaunch-$command" "${about%%:*}" >"$out/softlaunch-$command.1"
done
