# Makes a CUDA 13.0 toolkit out of wheels from PyPI, and sets what a build with `--features cuda` needs. To be read by a shell, not run:
#
#     . scripts/cuda-toolkit.sh FOLDER
#
# Neither a GPU nor a driver is needed. docs/gpu.md has the rest.

cuda_toolkit() {
    folder=${1:?"say where: . scripts/cuda-toolkit.sh FOLDER"}
    if [ ! -e "$folder/ready" ]; then
        python3 -m venv "$folder" || return
        "$folder/bin/pip" install --quiet "cuda-toolkit[nvcc,cudart,cublas,curand,nvrtc,cccl,crt,nvvm]==13.0.*" || return
        cuda_complete "$(echo "$folder"/lib/python3*/site-packages/nvidia/cu13)" && touch "$folder/ready" || return
    fi
    CUDA_HOME=$(cd "$folder" && echo "$PWD"/lib/python3*/site-packages/nvidia/cu13)
    export CUDA_HOME PATH="$CUDA_HOME/bin:$PATH" LIBRARY_PATH="$CUDA_HOME/lib"
    # What the libraries themselves refer to is found at run time.
    export RUSTFLAGS="-L native=$CUDA_HOME/lib -C link-arg=-Wl,--allow-shlib-undefined"
}

# What an installed toolkit has and wheels do not.
cuda_complete() (
    cd "$1" || return
    [ -e lib64 ] || ln -s lib lib64
    cd lib || return
    for library in lib*.so.1[0-9]; do
        ln -sf "$library" "${library%.so.*}.so"
    done
    # A driver to link against: every function of its header, none of which does anything.
    echo '#include <cuda.h>' | gcc -E -I../include - | grep -oE '\bcu[A-Z][A-Za-z0-9_]*[[:space:]]*\(' | tr -d ' (' | sort -u |
        awk '{ print "void " $1 "(void) {}" }' > driver.c
    gcc -shared -fPIC -o libcuda.so -Wl,-soname,libcuda.so.1 driver.c
)

cuda_toolkit "$@"
