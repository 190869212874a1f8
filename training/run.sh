#!/bin/sh
# Make the shipped model from nothing: vocabulary, three training phases, file, figures.
#   PYTHON=venv/bin/python PLAYS=tinyshakespeare.txt sh run.sh
# A later run goes on where one stopped: a phase whose checkpoint exists is not run again.
set -eu
PYTHON=${PYTHON:-python3}
PLAYS=${PLAYS:-data/tinyshakespeare.txt}
BUILD=${BUILD:-build}
MODELS=${MODELS:-../models}
prepare() { "$PYTHON" prepare.py "$@" --plays "$PLAYS" --out "$BUILD" --models "$MODELS"; }
phase() { # name, rows, then options
    name=$1 rows=$2
    shift 2
    [ -f "$BUILD/$name.npz" ] || {
        "$PYTHON" train.py --rows "$BUILD/rows-$rows.npz" --out "$BUILD/unfinished-$name.npz" "$@"
        mv "$BUILD/unfinished-$name.npz" "$BUILD/$name.npz"
    }
}

[ -f "$BUILD/tokenizer.json" ] || prepare tokenizer
[ -f "$BUILD/rows-copy-128.npz" ] || prepare rows --mix copy --length 128 --rows 9000
[ -f "$BUILD/rows-main-256.npz" ] || prepare rows --mix main --length 256 --rows 12000
[ -f "$BUILD/rows-main-2048.npz" ] || prepare rows --mix main --length 2048 --rows 500 --skip 0

phase copy copy-128 --steps 211 --batch 16 --warmup 20 --start 0.4 --end 0.4
phase main main-256 --steps 1000 --batch 12 --start 0.7 --end 0.7 --init "$BUILD/copy.npz"
phase long main-2048 --steps 240 --batch 2 --start 0.6 --end 0.02 --init "$BUILD/main.npz"

prepare heldout
"$PYTHON" export.py --checkpoint "$BUILD/long.npz" --tokenizer "$BUILD/tokenizer.json" --out "$MODELS/neap-tiny.gguf"
"$PYTHON" evaluate.py --checkpoint "$BUILD/long.npz" --tokenizer "$BUILD/tokenizer.json" --models "$MODELS" \
    --plays "$PLAYS" --more 3 | tee "$BUILD/figures.txt"
