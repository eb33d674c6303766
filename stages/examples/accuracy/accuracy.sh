#!/bin/sh
# Trains on both sides and prints the tables: accuracy.sh TRESTLE DATA PYTHON [OPTION OF trestle run …]
# DATA is what fetch.sh made; PYTHON has torch, torchvision and safetensors. Two stages at a time, one thread each, on two processors.
set -eu
trestle=$1 data=$2 python=$3
shift 3
pipeline=$(cd "$(dirname "$0")" && pwd)/accuracy.yaml
"$trestle" run "$pipeline" --set data="$data" --set python="$python" "$@"
for task in mnist resnet squeezenet; do
    cat "$("$trestle" out "$pipeline" "$task-table" table --set data="$data" --set python="$python")"
done
