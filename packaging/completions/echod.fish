complete -c echod -s l -l listen -d 'Listen on ADDRESS; may be given more than once [default: 9999]' -r -f
complete -c echod -l max-connections -d 'Limit simultaneous connections [default: by RLIMIT_NOFILE]' -r -f
complete -c echod -l idle-timeout -d 'Close connections idle for this long; 0 disables' -r -f
complete -c echod -l drain-timeout -d 'On shutdown, wait this long for peers to close' -r -f
complete -c echod -l buffer-size -d 'Limit reads and unsent data per peer [default: 65536; Unix 131072]' -r -f
complete -c echod -l max-buffered -d 'Limit the unsent data of all connections' -r -f
complete -c echod -l socket-buffer -d 'Fix the kernel\'s socket buffers [default: kernel autotuning]' -r -f
complete -c echod -l backlog -d 'Set the length of the listen backlog' -r -f
complete -c echod -l busy-poll -d 'Poll this long before blocking if it pays' -r -f
complete -c echod -l metrics -d 'Serve Prometheus metrics and /healthz over HTTP' -r -f
complete -c echod -l check -d 'Test the echo server at ADDRESS instead of serving, and exit' -r -f
complete -c echod -l one-shot -d 'Echo one message of at most 1024 bytes, then close first'
complete -c echod -l reuse-port -d 'Share the port with other processes (SO_REUSEPORT)'
complete -c echod -l explain -d 'Print a live TCP sequence diagram of each connection to stdout'
complete -c echod -s v -d 'Log each connection; -vv: also each readiness event'
complete -c echod -s q -d 'Log only warnings and errors'
complete -c echod -s h -l help -d 'Print help'
complete -c echod -s V -l version -d 'Print version'
