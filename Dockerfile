# The command, without TensorFlow. With --user it writes files of yours into your folder:
# docker build -t mnv3-port . && docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" mnv3-port convert ckpt/
FROM python:3.11-slim
COPY . /src
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu /src && rm -rf /src
RUN useradd --create-home porter
USER porter
# A user of another number has no entry in /etc/passwd, and torch asks for a name and a home
ENV USER=porter HOME=/tmp
WORKDIR /data
ENTRYPOINT ["mnv3-port"]
