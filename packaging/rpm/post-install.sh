# After installing: the user exists, and a process that runs makes place for the new version.
systemd-sysusers fairway.conf || :
systemd-tmpfiles --create fairway.conf || :
if [ "$1" -eq 1 ]; then
  # Whether it starts at boot is for the distribution's presets to say.
  systemctl --no-reload preset fairway.service || :
fi
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload || :
  if [ "$1" -gt 1 ] && systemctl is-active --quiet fairway.service; then
    # The new version goes on where the old one is; that keeps its connections and ends with them.
    fairway upgrade || echo "fairway: the old version serves on; see 'journalctl -u fairway'" >&2
  fi
fi
