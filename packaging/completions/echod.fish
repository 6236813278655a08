complete -c echod -s l -l listen -d 'Where to listen; repeatable [default: 9999]' -r
complete -c echod -l max-connections -d 'Most connections at once [default: what RLIMIT_NOFILE allows]' -r
complete -c echod -l idle-timeout -d 'Close a connection idle for this long; 0: never' -r
complete -c echod -l drain-timeout -d 'How long a stop waits for peers to finish' -r
complete -c echod -l buffer-size -d 'Read buffer, the most that a stalled peer holds' -r
complete -c echod -l backlog -d 'How many connections may wait to be accepted' -r
complete -c echod -l busy-poll -d 'Poll this long before sleeping; at most 10ms' -r
complete -c echod -l metrics -d 'Serve Prometheus metrics and /healthz over HTTP' -r
complete -c echod -l one-shot -d 'Answer one message of at most 1024 bytes, then close first'
complete -c echod -l reuse-port -d 'Share the port with other processes (SO_REUSEPORT)'
complete -c echod -l explain -d 'Narrate each connection on stdout, as TCP lives it'
complete -c echod -s v -d 'Log more: -v each connection, -vv each readiness event'
complete -c echod -s q -d 'Log only warnings and errors'
complete -c echod -s h -l help -d 'Print help'
complete -c echod -s V -l version -d 'Print version'
