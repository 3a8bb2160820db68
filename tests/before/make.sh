# Make the files of this folder, from a checkout of commit 7f41096 installed in the active environment: bash make.sh
set -eu
B=/tmp/ssl_dist-before # the absolute path that is in what is made
rm -rf $B && mkdir -p $B/ends

cat > $B/images.py <<'PY'
"""Class folders of 16 px pictures whose classes overlap, so that an accuracy is neither chance nor 1."""
from pathlib import Path
import numpy as np
from PIL import Image

random = np.random.default_rng(0)
for part, per_class in (("first", 8), ("rest", 4)):
    for label in range(3):
        folder = Path("/tmp/ssl_dist-before/images") / part / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(per_class):
            tint = 128 + 30 * np.cos(2 * np.pi * (label / 3 + np.arange(3) / 3)) + random.normal(0, 22, 3)
            coarse = np.clip(tint + random.normal(0, 25, (4, 4, 3)), 0, 255).astype(np.uint8)
            image = Image.fromarray(coarse).resize((16, 16), Image.Resampling.BICUBIC)
            image.save(folder / f"{part}-{number}.png")
labels = [0] * 8 + [1] * 8 + [2] * 8 + [0, 1, 2, -1] * 3
np.save("/tmp/ssl_dist-before/labels.npy", np.array(labels, np.int16))
PY
cat > $B/killed_build.py <<'PY'
"""`ssl-dist` with these arguments, killed when the last shard is written and the manifest is not."""
import os, signal
import tune.cli
from ssl_dist.store import write

write._publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
tune.cli.run()
PY
cat > $B/killed_sweep.py <<'PY'
"""`ssl-dist` with these arguments, killed with its trial when the second trial has its first checkpoint."""
import os, re, signal, subprocess, sys, time
from pathlib import Path

sweep = Path("/tmp/ssl_dist-before/sweep")
driver = subprocess.Popen([sys.executable, "-m", "tune.cli", *sys.argv[1:]])
while True:
    begun = sorted(sweep.glob("trials/*/config.json"), key=lambda file: file.stat().st_ctime_ns)
    if len(begun) == 2 and any(begun[1].parent.glob("checkpoints/step-*")):
        break
    assert driver.poll() is None
    time.sleep(0.001)
log = (begun[1].parent / "worker-0.log").read_text()
os.kill(int(re.findall(r"process (\d+) on", log)[-1]), signal.SIGKILL)
os.kill(driver.pid, signal.SIGKILL)
driver.wait()
PY
cat > $B/recipe.yaml <<'YAML'
epochs: 3
data: {store: /tmp/ssl_dist-before/raw}
backbone: {name: resnet8, stem: half, width: 8} # fewer channels corrupt memory where oneDNN has AVX2 alone
method: {name: simclr, temperature: 0.2, projection_hidden: 16, projection_dim: 8}
augment: {recipe: simclr-small, jitter_strength: 0.2}
batch: {size: 8, micro: 4}
optim: {name: sgd, lr: 0.002, weight_decay: 0.001, warmup_epochs: 0, clip_norm: 3.0}
engine: {precision: fp32}
probe: {kind: knn, bank: 24, queries: 12, k: 3}
monitor: {every_steps: 1}
YAML
echo 'optim.lr: [0.05, 0.004, 0.02]' > $B/space.yaml

# Stores: 24 JPEG images; the same as pixels, with 12 more; a build and an append that were killed.
python $B/images.py
ssl-dist store build $B/images/first $B/jpeg --encoding jpeg --workers 1
ssl-dist store build $B/jpeg $B/raw --encoding raw --workers 1
ssl-dist store append $B/images/rest $B/raw --workers 1
cp -r $B/jpeg $B/half_appended
! python $B/killed_build.py store build $B/jpeg $B/half_built --encoding jpeg --workers 1
! python $B/killed_build.py store append $B/jpeg $B/half_appended --workers 1
cp -r $B/half_built $B/half_appended $B/raw $B/ends
ssl-dist store build $B/jpeg $B/ends/half_built --encoding jpeg --workers 1
ssl-dist store append $B/jpeg $B/ends/half_appended --workers 1
ssl-dist store append $B/raw $B/ends/raw --workers 1

# A run that its `stop` file ended, on labels of its own, in the order of shards.
ssl-dist pretrain $B/recipe.yaml --run-dir $B/run --set data.label_file=$B/labels.npy --set data.order=shards \
  --set data.window=16 --set checkpoint.every_epochs=0.5 --set checkpoint.keep=1 --set checkpoint.keep_best=0 &
until grep -qs '"step": 4, .*train/loss' $B/run/metrics.jsonl; do sleep 0.002; done
touch $B/run/stop
wait $!
cp -r $B/run $B/ends/run
ssl-dist pretrain --resume $B/ends/run
ssl-dist evaluate knn $B/run --train $B/jpeg --test $B/raw --k 5 --json | tail -n 1 > $B/ends/knn.json

# A sweep that was killed, and what came of it.
TUNE_GLOBAL_CHECKPOINT_S=0.1 python $B/killed_sweep.py tune $B/recipe.yaml --space $B/space.yaml --search grid \
  --scheduler asha --objective rankme --rung-epochs 1 --concurrency 1 --set epochs=4 --set optim.momentum=0 \
  --set checkpoint.keep=1 --set checkpoint.keep_best=0 --sweep-dir $B/sweep
sleep 5 # Ray ends
cp -r $B/sweep $B/ends/sweep
mv $B/sweep $B/killed && mv $B/ends/sweep $B/sweep # its path is in Ray Tune's files
ssl-dist tune --resume $B/sweep --concurrency 1 --json | tail -n 1 > $B/ends/sweep.json
mv $B/sweep $B/finished_sweep && mv $B/killed $B/sweep

# What is kept, here.
cd "$(dirname "$0")"
rm -rf jpeg raw half_built half_appended run sweep finished_sweep expected
cp -r $B/jpeg $B/raw $B/half_built $B/half_appended $B/run $B/sweep $B/finished_sweep .
cp $B/labels.npy run/
rm -rf */tensorboard */trials/*/tensorboard # pictures
rm -rf finished_sweep/{best,best.yaml,parallel.png,ray} finished_sweep/trials/*/{checkpoints,worker-0.log,stop} # not read
rm -rf sweep/trials/*/checkpoints/step-00000018 # of the trial that has ended
find . -name .validate_storage_marker -delete # empty, of Ray
python - <<'PY' # Ray pickles the paths of Python's own files: others of the same length
import sys
from pathlib import Path

[file] = Path("sweep/ray").glob("basic-variant-state-*")
prefix = sys.base_prefix.encode()
file.write_bytes(file.read_bytes().replace(prefix, b"/python".ljust(len(prefix), b"-")))
PY
mkdir expected
for store in half_built half_appended raw; do cp $B/ends/$store/manifest.json expected/$store.json; done
for store in jpeg raw; do ssl-dist store info $B/$store --json | tail -n 1 > expected/info_$store.json; done
python - <<'PY'
import hashlib, json
from pathlib import Path
import numpy as np
from safetensors.numpy import load_file
from ssl_dist.store import ImageStore

made = Path("/tmp/ssl_dist-before")
pixels = ImageStore(made / "raw").gather(np.arange(36))
[weights] = made.glob("ends/run/checkpoints/*/model.safetensors")
# of each tensor its length, and its sum weighted by cosines
sums = {
    name: [float(np.linalg.norm(flat)), float(flat @ np.cos(np.arange(len(flat))))]
    for name, tensor in sorted(load_file(weights).items())
    for flat in [tensor.astype(float).ravel()]
}
Path("expected/raw_pixels.json").write_text(json.dumps(hashlib.sha256(pixels.tobytes()).hexdigest()))
Path("expected/weights.json").write_text(json.dumps(sums, indent=1))
PY
cp $B/ends/run/metrics.jsonl $B/ends/*.json expected
