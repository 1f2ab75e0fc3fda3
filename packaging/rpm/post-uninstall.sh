# After removing: units are forgotten, and folders that are empty now; cargo-generate-rpm has no way to list them
# as the package's.
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload || :
fi
if [ "$1" -eq 0 ]; then
  rmdir /usr/share/fairway/* /usr/share/fairway /usr/share/doc/fairway/examples /usr/share/doc/fairway \
    /usr/share/licenses/fairway /etc/fairway 2>/dev/null || :
fi
