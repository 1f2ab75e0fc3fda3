# Before removing: it stops, after draining. An upgrade does not stop it.
if [ "$1" -eq 0 ]; then
  if [ -d /run/systemd/system ]; then
    systemctl --no-reload disable --now fairway.socket fairway.service || :
  else
    systemctl --no-reload disable fairway.socket fairway.service || :
  fi
fi
