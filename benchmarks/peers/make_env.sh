#!/bin/sh
# The environment of a peer: sh benchmarks/peers/make_env.sh PEER FOLDER  (FOLDER/PEER is made; PYTHON chooses the Python, 3.11)
# torch is the one of constraints.txt, from wherever your pip finds it: point pip at CPU wheels and no CUDA build comes in.
set -eu
peer=$1 folder=$2
here=$(dirname "$0")
mkdir -p "$folder"
grep '^torch==' "$here/../../constraints.txt" > "$folder/torch.txt"
"${PYTHON:-python3.11}" -m venv "$folder/$peer"
install() { "$folder/$peer/bin/python" -m pip install --quiet -c "$folder/torch.txt" "$@"; }

case $peer in
tfrs)
  install tensorflow-cpu tf-keras pyarrow
  install --no-deps tensorflow-recommenders ;; # it asks for `tensorflow`, with CUDA
librecommender)
  # it names no requirements of its own; newer pyarrows want numpy 2
  install 'numpy<2' 'pandas<3' 'pyarrow<20' scipy scikit-learn gensim tqdm tensorflow-cpu tf-keras torch LibRecommender ;;
replay_rec)
  install torch pyarrow 'replay-rec[torch]' ;;
rectools_dssm)
  install torch 'pyarrow<20' 'rectools[torch]' ;; # it wants numpy 1
*)
  echo "no such peer: $peer; there are tfrs, librecommender, replay_rec, rectools_dssm" >&2
  exit 2 ;;
esac
