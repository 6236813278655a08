complete -c echod -s l -l listen -d 'Listen on ADDRESS; may be given more than once [default: 9999]' -r
complete -c echod -l max-connections -d 'Limit simultaneous connections [default: by RLIMIT_NOFILE]' -r
complete -c echod -l idle-timeout -d 'Close connections idle for this long; 0 disables' -r
complete -c echod -l drain-timeout -d 'On shutdown, wait this long for peers to close' -r
complete -c echod -l buffer-size -d 'Limit each read and each peer\'s unsent data' -r
complete -c echod -l backlog -d 'Set the length of the listen backlog' -r
complete -c echod -l busy-poll -d 'Keep polling this long before blocking; at most 10ms' -r
complete -c echod -l metrics -d 'Serve Prometheus metrics and /healthz over HTTP' -r
complete -c echod -l one-shot -d 'Echo one message of at most 1024 bytes, then close first'
complete -c echod -l reuse-port -d 'Share the port with other processes (SO_REUSEPORT)'
complete -c echod -l explain -d 'Print a live TCP sequence diagram of each connection to stdout'
complete -c echod -s v -d 'Log each connection; -vv: also each readiness event'
complete -c echod -s q -d 'Log only warnings and errors'
complete -c echod -s h -l help -d 'Print help'
complete -c echod -s V -l version -d 'Print version'
