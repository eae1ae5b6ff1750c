#!/bin/sh
# Write VERSION.h5.gz next to this script: a store of three images and a failure, by the rn50feat on the PATH.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/images"
cp -p "$here/../../../examples/images/coast.jpg" "$here/../../../examples/images/hills.jpg" \
    "$here/../../../examples/images/ridge.jpg" "$folder/images"
echo "no image" > "$folder/images/broken.jpg"
cd "$folder"
rn50feat extract images out.h5 --weights random --dtype float16
gzip -9nc out.h5 > "$here/$1.h5.gz"
