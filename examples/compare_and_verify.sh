# Train three methods on digits, compare them, and decide the first ten test images one by one. Under a minute.
set -e
etb compare --methods nominal,ibp,expected --model mlp-20x2 --epochs 10 --eps 0.05 --out runs/example
etb verify runs/example --images 0:10 --time-limit 5
etb report runs/example --format markdown --out runs/example.md
