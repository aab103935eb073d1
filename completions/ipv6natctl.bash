# Completion of ipv6natctl for bash, with the present names of containers and networks. A name with
# characters that Docker itself does not permit is not offered: bash would run commands in it.

_ipv6natctl_column() {
    ipv6natctl "$1" --no-legend 2>/dev/null |
        awk -v column="$2" '$column ~ /^[[A-Za-z0-9_][]A-Za-z0-9_.:-]*$/ { print $column }'
}

_ipv6natctl_containers() {
    _ipv6natctl_column mappings 3
    _ipv6natctl_column skipped 1
}

_ipv6natctl_ports() {
    _ipv6natctl_column mappings 2 | sed 's/.*]:\([0-9]*\).*/\1/'
}

_ipv6natctl() {
    local commands='status mappings networks skipped findings rules explain check top monitor
        resync reload cleanup metrics report ula'
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} command='' word
    # Bash takes --option=value for three words.
    if [[ $current == '=' ]]; then
        current=''
    elif [[ $previous == '=' ]]; then
        previous=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        if [[ " ${commands//[[:space:]]/ } " == *" $word "* ]]; then
            command=$word
            break
        fi
    done
    local words=''
    case $previous in
        --container) words=$(_ipv6natctl_containers) ;;
        --network) words=$(_ipv6natctl_column networks 1) ;;
        --port) words=$(_ipv6natctl_ports) ;;
        --protocol) words='tcp udp sctp' ;;
        --json) words='short pretty off' ;;
        explain) words="$(_ipv6natctl_containers) $(_ipv6natctl_ports)" ;;
        *)
            case $command in
                '') words=$commands ;;
                mappings) words='--container --network --port --protocol' ;;
                networks | findings) words='--network' ;;
                skipped) words='--container --network' ;;
                cleanup) words='--leftovers --dry-run' ;;
                explain) words='--from' ;;
                report) words='--unchanged' ;;
            esac
            words+=' --json --no-legend --help --version'
            [[ $command || $current == -* ]] || words=$commands
            ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current" | sort -u)
}

complete -F _ipv6natctl ipv6natctl
