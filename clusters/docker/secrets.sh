#!/bin/sh
# Makes the secrets of clusters/compose.yaml, each a file of its own; what is there stays.
set -eu
umask 077
folder="$(dirname "$0")/../secrets"
mkdir -p "$folder"
for name in ray_token mlflow_password mlflow_cookie_key postgres_password; do
    if [ ! -s "$folder/$name" ]; then
        python3 -c 'import secrets; print(secrets.token_hex(32), end="")' > "$folder/$name"
    fi
    # The containers' own users read the files; nobody else gets into the folder.
    chmod 644 "$folder/$name"
done
chmod 700 "$folder"
