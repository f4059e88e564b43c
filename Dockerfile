# gqakit on a CPU, with every extra that converting, evaluating and exporting take.
# The workflow builds and starts it (.github/workflows/tests.yml); `make test` does not.
#   docker build -t gqakit .
#   docker run --rm -v "$PWD:/work" gqakit inspect MODEL
FROM python:3.12-slim
ENV PIP_NO_CACHE_DIR=1 HF_HOME=/work/.cache/huggingface
RUN pip install torch --index-url https://download.pytorch.org/whl/cpu
COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
RUN pip install '/src[qcqa,plot,page,cpu,data,vision,audio,train,gguf]'
WORKDIR /work
ENTRYPOINT ["gqakit"]
