# bash completion of softlaunch, from what it says of itself: `softlaunch help` and `softlaunch COMMAND --help`. Source it, or install
# it as /usr/share/bash-completion/completions/softlaunch.
_softlaunch() {
    local program=${COMP_WORDS[0]} word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}
    local command=${COMP_WORDS[1]} help words
    if [ "$COMP_CWORD" = 1 ]; then
        words="$("$program" help 2>/dev/null | sed -n 's/^  \([a-z][a-z]*\)  .*/\1/p') help"
    else
        help=$("$program" "$command" --help 2>&1 </dev/null)
        case $word in
        -*) words="$(printf '%s\n' "$help" | grep -oE -- '--[a-z][a-z-]*' | sort -u) --help" ;;
        *)
            # verbs stand behind the command in a usage line: "softlaunch queues pause|resume|drain QUEUE"
            [ "$COMP_CWORD" = 2 ] &&
                words=$(printf '%s\n' "$help" | sed -nE "s/^(usage:|      ) softlaunch $command \[?([a-z|]+)\]?( .*|\$)/\2/p" | tr '|' '\n')
            case $command:$before in
            logs:* | cancel:* | runs:show | runs:move | runs:requeue | runs:note)
                words="$words $("$program" runs --json --limit 50 2>/dev/null |
                    sed -nE 's/^ *"(run|name)": "([^"]*)".*/\2/p')" ;;
            esac ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    [ ${#COMPREPLY[@]} = 0 ] && COMPREPLY=($(compgen -f -- "$word"))
}
complete -o filenames -o bashdefault -F _softlaunch softlaunch
