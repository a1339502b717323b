#!/bin/sh
# A real model reads a real document under several kinds of attention (make demo).
set -eu
cd "$(dirname "$0")/.."

model=models/SmolLM2-135M-Instruct.Q4_1.gguf
text=/usr/share/common-licenses/GPL-3
question="In one sentence: what does this license let people do?"

for need in build/fovea "$model"; do
    [ -e "$need" ] && continue
    echo "demo: $need is not there: 'make demo' builds and fetches what it needs" >&2
    exit 1
done
if [ ! -r "$text" ]; then
    text=LICENSE
    echo "demo: no /usr/share/common-licenses/GPL-3 here: reading this project's LICENSE instead" >&2
fi

# A text of 7,000 tokens, 30 layers: windows of 1,024 tokens, blocks of 128, and the first layers, which look
# everywhere, left dense in the mixture.
build/fovea compare -m "$model" -f "$text" -p "$question" -n 40 --score 64 \
    --with sinkwin:sink=4,window=1024 \
    --with power:block=128,window_blocks=5 \
    --with moba:block=128,top=8 \
    --with '0-2/dense;3-15/moba:block=128,top=8;rest/sinkwin:sink=4,window=1024' \
    --report build/demo.html
echo "the report: $(pwd)/build/demo.html (open it in a browser)"
