# Completion of ipv6natctl for fish, with the present names of containers and networks. A name with
# characters that Docker itself does not permit is not offered: bash would run commands in it.

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
complete -c ipv6natctl -n __fish_use_subcommand -a status -d 'State, counts and faults'
complete -c ipv6natctl -n __fish_use_subcommand -a mappings -d 'Forwarded ports and their containers'
complete -c ipv6natctl -n __fish_use_subcommand -a networks -d 'Managed networks'
complete -c ipv6natctl -n __fish_use_subcommand -a skipped -d 'Ports and networks that are not forwarded'
complete -c ipv6natctl -n __fish_use_subcommand -a findings -d 'Faults of this host and of networks, with remedies'
complete -c ipv6natctl -n __fish_use_subcommand -a rules -d 'The rules in force'
complete -c ipv6natctl -n __fish_use_subcommand -a explain -d 'Why a container or port is reachable or not'
complete -c ipv6natctl -n __fish_use_subcommand -a check -d 'The same faults and what is correct, also without the daemon'
complete -c ipv6natctl -n __fish_use_subcommand -a top -d 'Mappings by their connections, live'
complete -c ipv6natctl -n __fish_use_subcommand -a monitor -d 'Changes as they occur'
complete -c ipv6natctl -n __fish_use_subcommand -a resync -d 'Compare engine and kernel now'
complete -c ipv6natctl -n __fish_use_subcommand -a reload -d 'Read the configuration again'
complete -c ipv6natctl -n __fish_use_subcommand -a cleanup -d 'Remove all rules'
complete -c ipv6natctl -n __fish_use_subcommand -a metrics -d 'Counts and times for Prometheus'
complete -c ipv6natctl -n __fish_use_subcommand -a report -d 'One text for a bug report'
complete -c ipv6natctl -n __fish_use_subcommand -a ula -d 'A random private prefix'

complete -c ipv6natctl -n '__fish_seen_subcommand_from explain' \
    -a '(__ipv6natctl_containers; __ipv6natctl_ports)'
complete -c ipv6natctl -n '__fish_seen_subcommand_from mappings skipped' -l container -x \
    -a '(__ipv6natctl_containers)' -d 'Only this container'
complete -c ipv6natctl -n '__fish_seen_subcommand_from mappings skipped networks findings' -l network -x \
    -a '(__ipv6natctl_column networks 1)' -d 'Only this network'
complete -c ipv6natctl -n '__fish_seen_subcommand_from mappings' -l port -x \
    -a '(__ipv6natctl_ports)' -d 'Only mappings that contain this host port'
complete -c ipv6natctl -n '__fish_seen_subcommand_from mappings' -l protocol -x \
    -a 'tcp udp sctp' -d 'Only this protocol'
complete -c ipv6natctl -n '__fish_seen_subcommand_from explain' -l from -x \
    -d 'Follow a packet from this address'
complete -c ipv6natctl -n '__fish_seen_subcommand_from report' -l unchanged \
    -d 'Keep names and public addresses'
complete -c ipv6natctl -n '__fish_seen_subcommand_from cleanup' -l leftovers \
    -d 'The rules that docker-ipv6nat or a switched-off engine left'
complete -c ipv6natctl -n '__fish_seen_subcommand_from cleanup' -l dry-run \
    -d 'Only list them'
complete -c ipv6natctl -l json -x -a 'short pretty off' -d 'JSON instead of text'
complete -c ipv6natctl -s j -d 'JSON instead of text'
complete -c ipv6natctl -l no-legend -d 'Leave out the header and the count of rows'
complete -c ipv6natctl -s h -l help -d 'Show help'
complete -c ipv6natctl -l version -d 'Show the version'
