# Completion of ipv6natctl for fish. Names of containers and networks are those of this moment.
# One with other letters than Docker allows by itself is not offered: bash would run what is in it.

function __ipv6natctl_column
    ipv6natctl $argv[1] --no-legend 2>/dev/null |
        awk -v column=$argv[2] '$column ~ /^[[A-Za-z0-9_][]A-Za-z0-9_.:-]*$/ { print $column }'
end

function __ipv6natctl_containers
    begin
        __ipv6natctl_column mappings 3
        __ipv6natctl_column skipped 1
    end | sort -u
end

function __ipv6natctl_ports
    __ipv6natctl_column mappings 2 | sed 's/.*]:\([0-9]*\).*/\1/' | sort -nu
end

complete -c ipv6natctl -f
complete -c ipv6natctl -n __fish_use_subcommand -a status -d 'State, counts and what is wrong'
complete -c ipv6natctl -n __fish_use_subcommand -a mappings -d 'Published ports that are forwarded'
complete -c ipv6natctl -n __fish_use_subcommand -a networks -d 'Networks that are handled'
complete -c ipv6natctl -n __fish_use_subcommand -a skipped -d 'What was wanted and is not forwarded'
complete -c ipv6natctl -n __fish_use_subcommand -a rules -d 'The rules in force'
complete -c ipv6natctl -n __fish_use_subcommand -a explain -d 'Why something is reached as it is'
complete -c ipv6natctl -n __fish_use_subcommand -a check -d 'What IPv6 NAT hangs on here'
complete -c ipv6natctl -n __fish_use_subcommand -a monitor -d 'What changes, as it changes'
complete -c ipv6natctl -n __fish_use_subcommand -a resync -d 'Compare engine and rules now'
complete -c ipv6natctl -n __fish_use_subcommand -a reload -d 'Read the configuration again'
complete -c ipv6natctl -n __fish_use_subcommand -a cleanup -d 'Remove all rules'
complete -c ipv6natctl -n __fish_use_subcommand -a metrics -d 'Counts and times for Prometheus'
complete -c ipv6natctl -n __fish_use_subcommand -a ula -d 'A random private prefix'

complete -c ipv6natctl -n '__fish_seen_subcommand_from explain' \
    -a '(__ipv6natctl_containers; __ipv6natctl_ports)'
complete -c ipv6natctl -n '__fish_seen_subcommand_from mappings skipped' -l container -x \
    -a '(__ipv6natctl_containers)' -d 'Only of this container'
complete -c ipv6natctl -n '__fish_seen_subcommand_from mappings skipped networks' -l network -x \
    -a '(__ipv6natctl_column networks 1)' -d 'Only of this network'
complete -c ipv6natctl -n '__fish_seen_subcommand_from mappings' -l port -x \
    -a '(__ipv6natctl_ports)' -d 'Only what covers this port of the host'
complete -c ipv6natctl -n '__fish_seen_subcommand_from mappings' -l protocol -x \
    -a 'tcp udp sctp' -d 'Only this protocol'
complete -c ipv6natctl -n '__fish_seen_subcommand_from cleanup' -l leftovers \
    -d 'What docker-ipv6nat or a switched-off engine has left'
complete -c ipv6natctl -n '__fish_seen_subcommand_from cleanup' -l dry-run \
    -d 'Only show what would go'
complete -c ipv6natctl -l json -x -a 'short pretty off' -d 'JSON instead of text'
complete -c ipv6natctl -s j -d 'JSON instead of text'
complete -c ipv6natctl -l no-legend -d 'Leave out the header and the count of rows'
complete -c ipv6natctl -s h -l help -d 'Show help'
complete -c ipv6natctl -l version -d 'Show the version'
