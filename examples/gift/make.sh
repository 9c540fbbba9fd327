#!/usr/bin/env bash
# How the gift was made: a BadNet on GTSRB, its clean twin, and images no model was trained on.
# Needs GIFTHORSE_DATA with gtsrb32.npz; about eight minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")"
gifthorse=${GIFTHORSE:-gifthorse}
recipe="epochs=30 batch=64 lr=0.1 flip=false pad=2"
$gifthorse train --data gtsrb --net tiny $(printf ' --set %s' $recipe) -o twin.safetensors
$gifthorse attack badnet --data gtsrb --net tiny --target 14 \
  --set size=3 --set ink=white --set mixing.rate=0.05 \
  $(printf ' --set recipe.%s' $recipe) -o gift.safetensors
$gifthorse sample --data gtsrb --split validation --per-class 2 -o clean.npz
